"""``rtevo init VENDOR``: write a short session file that holds only what has to be set, and say what to do next.

What matters for each vendor is in ``docs/scanners.md``; ``python -m rtevo.run --example`` shows every key.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rtevo.command import Parser, command
from rtevo.errors import DataError

__all__ = ["NEXT", "SESSIONS", "main", "write"]

_HEAD = """\
# An rtevo session at a {vendor} scanner. What is marked SET is yours to set; `rtevo run --example` shows all keys with their defaults.
# Paths are relative to this file.

[session]
participant = "01"  # SET: BIDS label, letters and digits
session = "01"  # runs count themselves: sessions/sub-01_ses-01_run-01, and so on
"""
_REST = """
[decoder]
folder = "decoder"  # SET: made by `rtevo decode fit` or `rtevo decode import`

[generator]
unclip_model_path = "model"  # SET: made by `rtevo generate get`; check it with `rtevo generate check`

[evolution]
pca = "latent.npz"  # SET: made by `rtevo latent fit PICTURES --model model`
generations = 12  # SET: in blocks of `population` images, of 4 s each; `rtevo evolve plan` says what to expect
population = 5

[safety]
# avoid = "avoid"  # a folder of pictures to stay away from; docs/safety.md says what else keeps pictures from the participant

[bridge]
bind = "tcp://*:5555"
keys = "keys"  # SET: made by `rtevo bridge keys keys`; its presenter.json goes to the stimulus PC
"""
_SIEMENS = """
[acquisition]  # docs/scanners.md: Siemens. VB to VE: Mosaic on; XA: export enhanced, not interoperability
source = "watch"
folder = "export"  # SET: where the console exports to in real time (its share, mounted here); empty when a session begins
tr_s = 2.0  # SET: repetition time, s; `rtevo ingest FOLDER` names it
# series = "bold"  # where the scanner also exports series that it has corrected for motion (MoCo), or references: the run's name
"""
_GE = """
[acquisition]  # docs/scanners.md: GE. One file per slice: a wired network, and a local disk as the target
source = "watch"
folder = "export"  # SET: what the slices are copied into while they come (rsync in a loop, without --inplace); empty when a session begins
tr_s = 2.0  # SET: repetition time, s, with epiRT's group delay; `rtevo ingest FOLDER` names it
# series = "bold"  # where other series are exported under like names: the run's name
"""
_PHILIPS = """
[acquisition]  # docs/scanners.md: Philips. Send while the scan runs: classic DICOM (a slice a file), not enhanced
source = "watch"
delivery = "dicom"  # needs pip install 'rtevo[dicom-net]'; a share that is filled during the scan: delivery = "folder", folder = ...
address = "0.0.0.0"  # SET: this computer's address in the control room's network; 0.0.0.0: all of them
port = 11112
ae_title = "RTEVO"
peers = ["CONSOLE@192.168.2.1"]  # SET: title and address of who may send
tr_s = 2.0  # SET: repetition time, s; with prospective motion correction the measured interval
# series = "bold"  # where other series are sent under like names: the run's name
"""
_SIMULATE = """\
# An rtevo session without a scanner. It runs as it is; `rtevo run --example` shows all keys with their defaults.

[session]
participant = "sim"
seed = 1  # the same seed gives the same session

[acquisition]
source = "simulate"

[evolution]
generations = 7  # blocks of 5 images, of 4 s each

[simulation]
prefers = "animal"  # what the simulated participant likes; `rtevo run --prefers list` shows what there is
"""
SESSIONS = {
    "siemens": _HEAD.format(vendor="Siemens") + _SIEMENS + _REST,
    "ge": _HEAD.format(vendor="GE") + _GE + _REST,
    "philips": _HEAD.format(vendor="Philips") + _PHILIPS + _REST,
    "simulate": _SIMULATE,
}
"""The session file for each vendor."""
_CHECK_AND_RUN = (
    ("localizer {file} --folder PICTURES", "known pictures, shown to the participant; then decode fit RUN_FOLDER: the decoder"),
    ("run --check {file}", "everything, before the participant lies down; it names what is not there yet"),
    ("run {file}", "the session"),
)
_SIMULATED = (
    ("localizer {file} --speed max", "pictures of known categories; decode fit RUN_FOLDER makes a decoder of them"),
    ("run {file}", "the session, about 4 minutes; --speed max: as fast as this computer can"),
    ("report OUT", "a page about it; OUT: the folder that it names"),
)
_FOLDER = ("ingest FOLDER", "a test export: which series a session would take, its repetition time, what is wrong")
_NETWORK = ("ingest received --listen 11112", "a test of the console's side: receives until Ctrl-C, then lists what came")
NEXT = {
    "siemens": (_FOLDER, *_CHECK_AND_RUN),
    "ge": (_FOLDER, *_CHECK_AND_RUN),
    "philips": (_NETWORK, *_CHECK_AND_RUN),
    "simulate": _SIMULATED,
}
"""What to do next: arguments of ``rtevo``, and what comes of them."""


def write(vendor: str, file: Path) -> str:
    """Write a session file, and return what to do next.

    Parameters
    ----------
    vendor : str
        One of :data:`SESSIONS`.
    file : Path
        To write.

    Raises
    ------
    DataError
        It is there already.
    OSError
        It cannot be written.
    """
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(SESSIONS[vendor])
    except FileExistsError:
        raise DataError(f"{file}: expected no such file yet, since nothing is ever overwritten: name another one") from None
    steps = [(step.format(file=file), words) for step, words in NEXT[vendor]]
    width = max(len(step) for step, _ in steps)
    mend = "" if vendor == "simulate" else " Set in it what is marked SET (docs/scanners.md: what to set on the scanner's console)."
    return "\n".join([f"{file} is written.{mend} Then:", *(f"  rtevo {step:{width}}  {words}" for step, words in steps)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    p = Parser(prog="python -m rtevo.init", description="Write a short session file: only what has to be set, with what to set it to.")
    p.add_argument("vendor", choices=tuple(SESSIONS), help="the scanner's, or simulate: a participant and a scanner that are simulated")
    p.add_argument(
        "file",
        nargs="?",
        type=Path,
        default=Path("session.toml"),
        metavar="SESSION.toml",
        help="must not exist yet (default: session.toml)",
    )
    options = p.parse_args(arguments)
    return command(lambda: print(write(options.vendor, options.file)))


if __name__ == "__main__":
    sys.exit(main())

"""``rtevo init VENDOR``: write a short session file with only the keys that must be set, and print the next steps.

``docs/scanners.md`` explains each vendor; ``python -m rtevo.run --example`` shows every key.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rtevo.command import Parser, command
from rtevo.errors import DataError

__all__ = ["NEXT", "SESSIONS", "main", "write"]

_HEAD = """\
# An rtevo session at a {vendor} scanner. Set the keys marked SET; `rtevo run --example` shows all keys with their defaults.
# Paths are relative to this file.

[session]
participant = "01"  # SET: BIDS label, letters and digits
session = "01"  # runs are numbered automatically: sessions/sub-01_ses-01_run-01, and so on
"""
_REST = """
[decoder]
folder = "decoder"  # SET: made by `rtevo decode fit` or `rtevo decode import`

[generator]
unclip_model_path = "model"  # SET: made by `rtevo generate get`; check it with `rtevo generate check`

[evolution]
pca = "latent.npz"  # SET: made by `rtevo latent fit PICTURES --model model`
generations = 12  # SET: blocks of `population` images of 4 s each; `rtevo evolve plan` shows what to expect
population = 5

[safety]
# avoid = "avoid"  # a folder of pictures that evolution must stay away from; docs/safety.md describes the other filters

[bridge]
bind = "tcp://*:5555"
keys = "keys"  # SET: made by `rtevo bridge keys keys`; its presenter.json goes to the stimulus PC
"""
_SIEMENS = """
[acquisition]  # docs/scanners.md: Siemens. VB to VE: Mosaic on; XA: export enhanced, not interoperability
source = "watch"
folder = "export"  # SET: the folder of the console's real-time export (its share, mounted here); empty when a session begins
tr_s = 2.0  # SET: repetition time, s; `rtevo ingest FOLDER` names it
# series = "bold"  # the run's name, if the scanner also exports motion-corrected (MoCo) or reference series
"""
_GE = """
[acquisition]  # docs/scanners.md: GE. One file per slice: a wired network, and a local disk as the target
source = "watch"
folder = "export"  # SET: slices are copied here during the scan (rsync in a loop, without --inplace); empty when a session begins
tr_s = 2.0  # SET: repetition time, s, with epiRT's group delay; `rtevo ingest FOLDER` names it
# series = "bold"  # the run's name, if other series are exported under similar names
"""
_PHILIPS = """
[acquisition]  # docs/scanners.md: Philips. Send while the scan runs: classic DICOM (a slice a file), not enhanced
source = "watch"
delivery = "dicom"  # needs pip install 'rtevo[dicom-net]'; for a share that fills during the scan: delivery = "folder", folder = ...
address = "0.0.0.0"  # SET: this computer's address in the control room's network; 0.0.0.0: all of them
port = 11112
ae_title = "RTEVO"
peers = ["CONSOLE@192.168.2.1"]  # SET: AE title and address of each permitted sender
tr_s = 2.0  # SET: repetition time, s; with prospective motion correction: the measured interval
# series = "bold"  # the run's name, if other series are sent under similar names
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
prefers = "animal"  # what the simulated participant likes; `rtevo run --prefers list` lists the choices
"""
SESSIONS = {
    "siemens": _HEAD.format(vendor="Siemens") + _SIEMENS + _REST,
    "ge": _HEAD.format(vendor="GE") + _GE + _REST,
    "philips": _HEAD.format(vendor="Philips") + _PHILIPS + _REST,
    "simulate": _SIMULATE,
}
"""The session file for each vendor."""
_CHECK_AND_RUN = (
    ("localizer {file} --folder PICTURES", "shows known pictures to the participant; then decode fit RUN_FOLDER makes the decoder"),
    ("run --check {file}", "checks everything before the participant lies down, and lists what is missing"),
    ("run {file}", "runs the session"),
)
_SIMULATED = (
    ("localizer {file} --speed max", "shows pictures of known categories; then decode fit RUN_FOLDER makes the decoder"),
    ("run {file}", "runs the session, about 4 minutes; --speed max: as fast as this computer can"),
    ("report OUT", "writes a page about the session; OUT: the folder that the session printed"),
)
_FOLDER = ("ingest FOLDER", "checks a test export: the series that a session would take, its repetition time, any problems")
_NETWORK = ("ingest received --listen 11112", "tests the console's side: receives until Ctrl-C, then lists what arrived")
NEXT = {
    "siemens": (_FOLDER, *_CHECK_AND_RUN),
    "ge": (_FOLDER, *_CHECK_AND_RUN),
    "philips": (_NETWORK, *_CHECK_AND_RUN),
    "simulate": _SIMULATED,
}
"""The next steps: arguments of ``rtevo``, and what each does."""


def write(vendor: str, file: Path) -> str:
    """Write a session file, and return the next steps.

    Parameters
    ----------
    vendor : str
        One of :data:`SESSIONS`.
    file : Path
        The file to write.

    Raises
    ------
    DataError
        The file exists already.
    OSError
        The file cannot be written.
    """
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(SESSIONS[vendor])
    except FileExistsError:
        raise DataError(f"{file}: expected no such file, because rtevo overwrites nothing: choose another name") from None
    steps = [(step.format(file=file), words) for step, words in NEXT[vendor]]
    width = max(len(step) for step, _ in steps)
    mend = "" if vendor == "simulate" else " Set the keys marked SET (docs/scanners.md: the settings of the scanner's console)."
    return "\n".join([f"{file} is written.{mend} Then:", *(f"  rtevo {step:{width}}  {words}" for step, words in steps)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    p = Parser(prog="python -m rtevo.init", description="Write a short session file: only the keys that must be set, each with a hint.")
    p.add_argument("vendor", choices=tuple(SESSIONS), help="the scanner's vendor; simulate: a simulated participant in a simulated scanner")
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

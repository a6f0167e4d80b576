"""Checks of the scanner's side: delivery, a sample volume, the decoder, realignment."""

from __future__ import annotations

import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rtevo.config import Config
from rtevo.decode import Decoder
from rtevo.errors import DataError
from rtevo.preflight.findings import Finding, Known, Verdict
from rtevo.record.making import check_maps
from rtevo.session import checks
from rtevo.session.decoding import compartments
from rtevo.session.prepare import make_decoder

if TYPE_CHECKING:
    from rtevo.ingest import SeriesInfo, Survey

__all__ = ["decoder", "delivery", "placement", "realignment", "sample", "source"]

SHARE_S = 5.0  # a share that does not answer in this time is dead
LISTING_S = 0.5  # listing a watched folder should not take longer
NETWORK = ("cifs", "smb3", "smbfs", "nfs", "nfs4", "fuse.sshfs", "9p", "afs")  # file systems that do not notify of new files
REPEATS = 5
CALLING = "RTEVO-CHECK"  # AE title


def source(known: Known) -> Iterator[Finding]:
    """Check the source of the volumes, and their repetition time."""
    config = known.config
    checks.check_participant(config)
    check_maps(config)
    known.source = checks.describe_source(config)
    known.tr_s = checks.repetition_time(config, known.source)
    if known.source is None:
        what = "the scanner" if config.acquisition.source == "watch" else f"simulated: prefers {config.simulation.prefers or 'colours'}"
        yield Finding("volumes", "pass", f"{what}; TR {known.tr_s:g} s")
        return
    found = known.source
    what = f"series {found.number} {found.description!r}: {found.n_volumes} volumes of {_shape(found.grid)}, TR {known.tr_s:g} s"
    if found.problems or found.missing:
        problems = [*found.problems, *([f"{len(found.missing)} volumes are missing"] if found.missing else [])]
        yield Finding(
            "volumes",
            "warn",
            f"{what}; {'; '.join(problems)}",
            "see docs/scanners.md; the session flags missing volumes and leaves them out",
        )
    else:
        yield Finding("volumes", "pass", what)


def _shape(grid: Any) -> str:
    return " x ".join(map(str, grid.shape))


# --- delivery --------------------------------------------------------------------------------------------------------------------------


def delivery(known: Known) -> Iterator[Finding]:
    """Check that volumes can be delivered as the session file says; if possible, by a test delivery."""
    checks.check_delivery(known.config)
    settings = known.config.acquisition
    if settings.source != "watch":
        yield Finding("delivery", "pass", f"the session delivers by itself ({settings.delivery})")
    elif settings.delivery == "dicom":
        yield _echo(known.config)
    elif settings.delivery == "push":
        yield _push(known)
    else:
        yield watched(Path(settings.folder))


def _echo(config: Config) -> Finding:
    """Listen as a session does, and send an echo (C-ECHO)."""
    from rtevo.ingest import DicomReceiver
    from rtevo.ingest.receiver import echo

    settings = config.acquisition
    peers = (*settings.peers, CALLING) if settings.peers else ()
    with (
        tempfile.TemporaryDirectory(prefix="rtevo-check-") as folder,
        DicomReceiver(folder, settings.port, address=settings.address, ae_title=settings.ae_title, peers=peers, patience_s=1.0) as receiver,
    ):
        took_s = echo(settings.address, receiver.port, settings.ae_title, CALLING)
    where = f"{settings.ae_title} at {settings.address}, port {settings.port}"
    figures = {"echo_ms": round(1e3 * took_s, 3)}
    if settings.address.startswith("127.") or settings.address == "::1":
        to_do = "correct if the sender runs on this computer; else set [acquisition] address and peers"
        return Finding("delivery", "warn", f"{where}: answers, but only this computer can reach it", to_do, figures)
    return Finding(
        "delivery", "pass", f"{where}: C-ECHO answered in {1e3 * took_s:.0f} ms; send an echo from the scanner's console too", "", figures
    )


def _push(known: Known) -> Finding:
    """Listen as a session does, and push a small volume."""
    from rtevo.bridge.keys import SUPPORT_FILE, with_guest
    from rtevo.ingest.push import PushSource
    from rtevo.ingest.receiver import reachable
    from rtevo.records import Grid
    from rtevo.simulate.send import PushEncoder, PushSender
    from rtevo.wire import KeyFile

    settings, took_s = known.config.acquisition, []
    address = reachable(settings.address)
    peers = (*settings.peers, f"@{address}") if settings.peers else ()
    own, guest = with_guest(KeyFile.read(Path(settings.keys) / SUPPORT_FILE, "support")) if settings.keys else (None, None)
    with PushSource(f"tcp://{settings.address}:{settings.port}", patience_s=1.0, peers=peers, keys=own) as pushed:
        encoder = PushEncoder(Grid((2, 2, 2), np.eye(4)), known.tr_s or 1.0, "preflight")
        message = encoder.encode(0, np.zeros((2, 2, 2), np.int16))

        def send() -> None:
            began = time.monotonic()
            with PushSender(f"tcp://{address}:{settings.port}", guest) as sender:
                sender.send("preflight", message)
            took_s.append(time.monotonic() - began)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        until = time.monotonic() + SHARE_S
        while thread.is_alive() and time.monotonic() < until:
            pushed.poll()
            thread.join(0.005)
    if not took_s:
        raise DataError(f"{address}, port {settings.port}: a volume pushed from this computer did not arrive: {pushed.problems}")
    return Finding(
        "delivery", "pass", f"a volume pushed to {pushed.endpoint} arrived in {1e3 * took_s[0]:.0f} ms", "", {"push_ms": 1e3 * took_s[0]}
    )


def watched(folder: Path) -> Finding:
    """Check that the watched folder answers and can be read."""
    answer: list[Any] = []
    began = time.monotonic()
    thread = threading.Thread(target=lambda: answer.append(_list(folder)), daemon=True)  # a dead share never answers
    thread.start()
    thread.join(SHARE_S)
    if not answer:
        found = f"{folder} has not answered for {SHARE_S:g} s: the share is dead"
        return Finding(
            "delivery", "fail", found, "mount it again (umount -l, mount), and check that the scanner's computer is on and reachable"
        )
    took_s = time.monotonic() - began
    entries, error = answer[0]
    figures = {"listing_ms": round(1e3 * took_s, 3), "entries": entries}
    if isinstance(error, FileNotFoundError):
        to_do = "correct if the scanner makes the folder; else mount the share, or correct [acquisition] folder"
        return Finding("delivery", "warn", f"{folder} does not exist yet", to_do, figures)
    if error is not None:
        to_do = f"permit {_user()} to read it, or correct [acquisition] folder"
        return Finding("delivery", "fail", f"{folder} cannot be read: {error.strerror}", to_do, figures)
    kind = _file_system(folder)
    what = f"{folder} ({kind}): {entries} entries, listed in {1e3 * took_s:.0f} ms"
    if took_s > LISTING_S:
        return Finding(
            "delivery", "warn", what, "let the scanner export to an empty folder: in a full one, files are noticed late", figures
        )
    return Finding("delivery", "pass", what, "", figures)


def _list(folder: Path) -> tuple[int, OSError | None]:
    try:
        with os.scandir(folder) as entries:
            return sum(1 for _ in entries), None
    except OSError as error:
        return 0, error


def _user() -> str:
    import getpass

    return f"user {getpass.getuser()}"


def _file_system(folder: Path) -> str:
    """Return the kind of file system of a folder."""
    best, kind = "", "unknown file system"
    for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        _, point, found, *_ = line.split()
        point = point.replace("\\040", " ")
        if str(folder.resolve()).startswith(point) and len(point) >= len(best):
            best, kind = point, found
    return f"network share, {kind}" if kind in NETWORK else kind


# --- decoder and sample ---------------------------------------------------------------------------------------------------------------


def decoder(known: Known) -> Iterator[Finding]:
    """Check the decoder that the session would use."""
    config = known.config
    loaded = checks.check_decoder(config)
    if loaded is None:
        assert known.tr_s is not None
        known.tell("making the session's decoder")
        with tempfile.TemporaryDirectory(prefix="rtevo-check-") as place:
            known.folder, known.decoder = make_decoder(config, known.source, known.tr_s, Path(place) / "decoder")
    else:
        known.folder, known.decoder = loaded
    made = known.decoder
    assert made is not None
    known.grid = made.grid
    compartments(config.decoder, made, np.eye(4), known.tr_s or checks.SIMULATED_TR_S)  # raises where a nuisance term has too few voxels
    what = (
        f"{made.name}: {int(made.mask.sum()):,} voxels of {_shape(made.grid)}, {' x '.join(f'{v:.3g}' for v in made.grid.voxel_size_mm)} mm"
    )
    if loaded is None and config.acquisition.source == "replay":
        yield Finding(
            "decoder", "warn", f"{what}; a random map, whose scores mean nothing", "name a decoder: [decoder] folder, or --decoder"
        )
    elif any(one.noise_sd is None for one in made.maps or (made,)) and config.decoder.method != "peak":
        to_do = "fit it again (python -m rtevo.decode fit), or accept that the first minute of scores is uncertain"
        yield Finding("decoder", "warn", f"{what}; it does not hold the voxels' noise", to_do)
    else:
        yield Finding("decoder", "pass", what)


def sample(known: Known) -> Iterator[Finding]:
    """Check a volume of the session's protocol: its repetition time and size."""
    found = _find_sample(known)
    if found is None:
        if known.config.acquisition.source == "simulate":
            yield Finding("sample volume", "pass", "the simulated head; the decoder is placed on it in the run's first volumes")
        else:
            why = f": {known.reason}" if known.reason else ""
            what = f"none{why}; the decoder will be placed on the run's first volumes, while the participant sees fixation"
            yield Finding(
                "sample volume", "pass", f"{what}. To check the placement beforehand, name a volume of today: --sample FILE or DIR"
            )
        return
    info, known.volume, where = found.info, found.volume, found.where
    known.grid, wanted = info.grid, known.config.acquisition.echoes
    what = f"{where}: {_shape(info.grid)} voxels of {' x '.join(f'{v:.3g}' for v in info.grid.voxel_size_mm)} mm"
    expected = known.tr_s
    if math.prod(info.grid.shape) > (most := checks.capacity(known.config, known.source)):
        yield Finding("sample volume", "fail", f"{what}, expected at most {most:,} in all", "set [acquisition] largest to its voxels")
    elif expected and info.tr_s and abs(info.tr_s - expected) > 0.01 * expected:
        found_s, to_do = f"{info.tr_s:g} s", f"set [acquisition] tr_s = {info.tr_s:g}, or choose the right protocol at the scanner"
        yield Finding("sample volume", "fail", f"{what}; expected the session's TR of {expected:g} s, found {found_s}", to_do)
    elif wanted > 1 and found.echoes != wanted:
        left = f"only the {wanted} shortest are combined" if found.echoes > wanted else "volumes that lack an echo are missing"
        to_do = "set [acquisition] echoes to the protocol's number, and export all of them"
        verdict: Verdict = "warn" if found.echoes > wanted else "fail"
        yield Finding("sample volume", verdict, f"{what}; expected {wanted} echoes of each volume, found {found.echoes}: {left}", to_do)
    elif info.problems:
        to_do = "see docs/scanners.md; compare the repetition time with the protocol's at the scanner"
        yield Finding("sample volume", "warn", f"{what}; {'; '.join(info.problems)}", to_do)
    else:
        yield Finding("sample volume", "pass", what)


def placement(known: Known) -> Iterator[Finding]:
    """Place the decoder on the sample, or on the scan of this visit that the session file names; with a picture."""
    from rtevo.decode import reorder
    from rtevo.place import draw_placement, place
    from rtevo.session.placing import Hints

    assert known.decoder is not None
    made, weight = known.decoder, abs(known.decoder.weights)
    known.tell("placing the decoder")
    hints = Hints.of(known.config, made)
    if hints.placement is not None:
        yield _placed("scan of this visit", hints.placement, "")
    if known.volume is None:
        return
    assert known.grid is not None
    starts = [matrix for _, matrix in hints.decoders]
    found = place(made.reference, made.grid, known.volume, known.grid, weight=weight, starts=starts)
    picture = Path("placement.png").resolve()
    draw_placement(picture, found, made.reference, made.grid, known.volume, known.grid, weight=weight, title="sample")
    own = " (the sample lies on the decoder's own grid)" if reorder(made, known.grid) is not None else ""
    yield _placed(f"sample{own}", found, f"; see {picture}")


def _placed(what: str, found: Any, see: str) -> Finding:
    """Judge a placement of the decoder."""
    figures = {name: float(getattr(found, name)) for name in ("correlation", "overlap", "weight_kept", "expected_error_mm")}
    said = (
        f"{what}: {found.verdict}, expected error {found.expected_error_mm:.2f} mm, correlation {found.correlation:.2f}, "
        f"{found.weight_kept:.0%} of the decoder's weight in view{see}"
    )
    judged: dict[str, Verdict] = {"good": "pass", "doubtful": "warn", "bad": "fail"}
    status = judged[str(found.verdict)]
    return Finding("placement", status, said, "; ".join(found.reasons) if status != "pass" else "", figures)


class _Sample(NamedTuple):
    """A volume of the session's protocol: its series, its voxels, where it was found, and how many echoes a volume of it has."""

    info: Any
    volume: Any
    where: str
    echoes: int


def _find_sample(known: Known) -> _Sample | None:
    """Return the named sample, or one in the scanner's export folder."""
    from rtevo.ingest import survey

    settings = known.config.acquisition
    if known.sample is not None:
        known.tell(f"reading {known.sample}")
        with tempfile.TemporaryDirectory(prefix="rtevo-check-") as place:
            folder = known.sample
            if not folder.is_dir():
                if not folder.is_file():
                    raise DataError(f"--sample {folder}: expected a file or a folder, found nothing")
                (Path(place) / folder.name).symlink_to(folder.resolve())
                folder = Path(place)
            return _only(folder, settings.series, str(known.sample))
    folder = Path(settings.folder)
    if known.source is not None:
        echoes = _echoes(survey(folder, settings.series or None), known.source) if settings.echoes > 1 else 1
        return _Sample(known.source, checks.first_volume(folder, known.source.uid), f"first volume of {settings.folder}", echoes)
    if settings.source == "watch" and settings.folder and folder.is_dir():
        known.tell(f"looking for a volume in {folder}")
        found = survey(folder, settings.series or None)
        known.reason = found.reason
        if (info := found.run) is not None:
            where = f"series {info.number} {info.description!r} in {folder}"
            return _Sample(info, checks.first_volume(folder, info.uid), where, _echoes(found, info))
    return None


def _only(folder: Path, series: str, where: str) -> _Sample:
    """Return a volume of the series that a run over a folder would use, or of the only one in it."""
    from rtevo.ingest import survey

    found = survey(folder, series or None)
    info = found.run or (found.series[0] if len(found.series) == 1 else None)
    if info is None:
        raise DataError(f"--sample: {found.reason}")
    if min(info.grid.shape) < 2:
        raise DataError("--sample: expected a whole volume, found one slice: name the folder that holds all of its files")
    return _Sample(info, checks.first_volume(folder, info.uid), where, _echoes(found, info))


def _echoes(found: Survey, info: SeriesInfo) -> int:
    """Number of echoes that each volume of a series has."""
    return len({each.te_ms for each in found.series if (each.uid, each.component) == (info.uid, info.component)})


def realignment(known: Known) -> Iterator[Finding]:
    """Load the kernels, and measure the time for a volume: the sample, or without one the decoder's reference."""
    from rtevo.decode import Quality, differences, reorder
    from rtevo.kernels._compile import cache_folder
    from rtevo.realign import Realigner, warm_up

    assert known.decoder is not None
    assert known.tr_s is not None
    there = len(list(cache_folder().glob("**/*.nbi"))) if cache_folder().is_dir() else 0
    known.tell("kernels: loading")
    began = time.monotonic()
    warm_up(known.tell)
    took_s = time.monotonic() - began
    figures: dict[str, float | None] = {"load_s": round(took_s, 2)}
    kept = f"loaded from {cache_folder()} in {took_s:.1f} s" if there else f"compiled into {cache_folder()} in {took_s:.1f} s"
    if not os.access(cache_folder(), os.W_OK):
        to_do = f"make {cache_folder()} writable: otherwise every process of every session compiles again"
        yield Finding("kernels", "warn", f"the cache {cache_folder()} cannot be written; ready in {took_s:.1f} s", to_do, figures)
    else:
        yield Finding("kernels", "pass", kept, "", figures)
    made, times_ms = known.decoder, []
    own: Decoder | None = made
    volume, reference, affine = made.reference, made.reference, made.grid.affine
    if known.volume is not None and known.grid is not None:
        volume, own = known.volume, reorder(made, known.grid)  # on another grid it is aligned to itself, like today's reference
        reference, affine = (volume, known.grid.affine) if own is None else (own.reference, own.grid.affine)
    with Realigner(reference, affine, threads=known.config.decoder.threads) as realigner:
        for _ in range(REPEATS):
            began = time.monotonic()
            motion, aligned = realigner.align(volume)
            times_ms.append(1e3 * (time.monotonic() - began))
    gain = 1.0
    if own is not None:
        quality = Quality(own)
        quality.add(aligned)
        gain = quality.gain()
    unlike = differences(made, known.tr_s, known.config.decoder.fwhm_mm, gain, motion.params) if motion.converged else []
    yield _speed(known, motion, sorted(times_ms), unlike)


def _speed(known: Known, motion: Any, times_ms: list[float], unlike: list[str]) -> Finding:
    """Judge the realignment of a volume."""
    assert known.tr_s is not None
    speed = known.config.session.speed
    budget_ms = 1e3 * known.tr_s / speed if speed else float("inf")
    p50, worst = times_ms[len(times_ms) // 2], times_ms[-1]
    figures: dict[str, float | None] = {"p50_ms": round(p50, 2), "max_ms": round(worst, 2), "tr_ms": 1e3 * known.tr_s}
    what = f"a volume in {p50:.0f} ms (at most {worst:.0f}); TR {1e3 * known.tr_s:.0f} ms"
    if not motion.converged:
        to_do = "check the participant, the slices and the orientation; see docs/realign.md"
        return Finding("realignment", "fail", "the sample cannot be aligned to the decoder's reference", to_do, figures)
    if p50 > budget_ms:
        return Finding("realignment", "fail", what, "set more [decoder] threads, or use a computer without other work", figures)
    if unlike:
        return Finding(
            "realignment", "warn", f"{what}; {'; '.join(unlike)}", "check that the decoder was made for this session's protocol", figures
        )
    if worst > 0.5 * budget_ms:
        return Finding("realignment", "warn", what, "close other programs; set more [decoder] threads if cores are free", figures)
    return Finding("realignment", "pass", what, "", figures)

"""Checks of the support computer: leftovers of dead sessions, space and speed of the disk, shared memory."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from rtevo.errors import ConfigError, RingError
from rtevo.preflight.findings import Finding, Known, megabytes
from rtevo.session import checks
from rtevo.session.prepare import clean_runtime
from rtevo.wire import is_loopback

__all__ = ["console", "disk", "leftovers", "shared_memory"]

WRITES_S = 2.0  # longest test of the disk
SPARE = 2.0  # free space should be this many times the space needed


def leftovers(known: Known) -> Iterator[Finding]:
    """Remove the leftovers of killed sessions, as the start of a session does; list the sessions that still run."""
    from rtevo.shm import clean, process
    from rtevo.shm.segment import list_segments

    removed = [*clean(), *clean_runtime()]
    entries = list_segments()
    running = sorted({process.pid_of(e.segment.layout.owner) for e in entries if e.segment is not None and e.owner_alive and not e.foreign})
    orphaned = sorted({pid for e in entries if not e.owner_alive for pid in e.attached})
    unknown = [e.name for e in entries if e.segment is None or e.foreign]
    what = f"leftovers of killed sessions removed: {len(removed)}" if removed else "no leftovers of killed sessions"
    if orphaned:
        pids = ", ".join(map(str, orphaned))
        yield Finding("leftovers", "fail", f"processes {pids} of a killed session still run", f"end them: kill {pids.replace(',', '')}")
    elif running:
        pids = ", ".join(map(str, running))
        yield Finding("leftovers", "warn", f"another session runs (process {pids})", "end it, unless it must run: it uses cores and GPU")
    elif unknown:
        to_do = "see python -m rtevo.shm; the user who made them can remove them"
        yield Finding("leftovers", "warn", f"{what}; {len(unknown)} rings of other users or versions", to_do)
    else:
        yield Finding("leftovers", "pass", what)


def console(known: Known) -> Iterator[Finding]:
    """Check that the operator's page can be served, if the session has one."""
    checks.check_console(known.config)
    if known.config.console.port:
        here = is_loopback(known.config.console.address)
        reached = "from this computer only" if here else "from other computers with a token that the session prints"
        yield Finding(
            "console", "pass", f"can be served at {known.config.console.address}:{known.config.console.port}; reachable {reached}"
        )


def disk(known: Known) -> Iterator[Finding]:
    """Check the space for the session's files, and that a volume is on the disk before the next one arrives."""
    assert known.grid is not None
    assert known.image_size is not None
    checks.check_group(known.config)
    place = checks.check_out(known.config.record.out)
    volume, total = needed(known)
    free = shutil.disk_usage(place).free
    what = f"{place}: {megabytes(free)} free, the session needs up to {megabytes(total)}"
    figures: dict[str, float | None] = {"free_bytes": free, "needed_bytes": total}
    to_do = "free some space, choose another [record] out, or save less ([record] save_volumes)"
    yield Finding(
        "disk space",
        "fail" if total > free else "warn" if SPARE * total > free else "pass",
        what,
        to_do if SPARE * total > free else "",
        figures,
    )
    if free > total:
        yield _write(known, place, max(volume, 1 << 16))


def needed(known: Known) -> tuple[int, int]:
    """Return the largest size of one volume, and of a whole session, on the disk, bytes; without a gain from compression."""
    assert known.grid is not None
    assert known.image_size is not None
    assert known.tr_s is not None
    voxels = known.grid.shape[0] * known.grid.shape[1] * known.grid.shape[2]
    kept = known.config.record.save_volumes
    echoes = known.config.acquisition.echoes
    volume = voxels * (2 * echoes * (kept in ("raw", "both")) + 4 * (kept in ("aligned", "both")))
    if known.config.acquisition.delivery != "folder":
        volume += 2 * voxels * echoes  # received files are kept as well
    volumes = known.source.n_volumes if known.source is not None else round(known.session_s / known.tr_s)
    image = 3 * known.image_size[0] * known.image_size[1] + 100_000  # with its log records
    return volume, volume * volumes + image * known.images + 2_000 * volumes


def _write(known: Known, place: Path, size: int) -> Finding:
    """Write volumes for a while, each synced to the disk like the record's."""
    assert known.tr_s is not None
    data = os.urandom(size)
    times_ms: list[float] = []
    known.tell(f"writing to {place}")
    try:
        with tempfile.TemporaryDirectory(prefix=".rtevo-check-", dir=place) as folder:
            until = time.monotonic() + WRITES_S
            while time.monotonic() < until and len(times_ms) < 50:
                began = time.monotonic()
                with (Path(folder) / "volume").open("wb") as file:
                    file.write(data)
                    os.fsync(file.fileno())
                times_ms.append(1e3 * (time.monotonic() - began))
    except OSError as error:
        raise ConfigError(f"[record] out: {place}: cannot be written to: {error.strerror}") from None
    times_ms.sort()
    p50, worst, tr_ms = times_ms[len(times_ms) // 2], times_ms[-1], 1e3 * known.tr_s / (known.config.session.speed or 1.0)
    what = f"{megabytes(size)} written and synced in {p50:.0f} ms (at most {worst:.0f}); a volume arrives every {tr_ms:.0f} ms"
    figures: dict[str, float | None] = {"p50_ms": round(p50, 2), "max_ms": round(worst, 2), "bytes_per_s": round(size / p50 * 1e3)}
    if p50 > tr_ms:
        return Finding("disk speed", "fail", what, "choose a faster disk in [record] out, not a network share", figures)
    if worst > tr_ms:
        return Finding("disk speed", "warn", what, "another program writes to this disk: stop it, or choose another disk", figures)
    return Finding("disk speed", "pass", what, "", figures)


def shared_memory(known: Known) -> Iterator[Finding]:
    """Make the session's rings once."""
    from rtevo.session.plan import Plan
    from rtevo.session.rings import create_rings
    from rtevo.shm.wakeup import FOLDER

    assert known.tr_s is not None
    assert known.embedding_size is not None
    assert known.image_size is not None
    nowhere = Path(os.devnull)
    plan = Plan(
        name=secrets.token_hex(3), config=known.config, condition="", out=nowhere, runtime=nowhere, incoming=nowhere,
        capacity=checks.capacity(known.config, known.source), tr_s=known.tr_s, decoder=nowhere, decoder_name=None,
        embedding_size=known.embedding_size, image_size=known.image_size, trials=known.trials,
    )  # fmt: skip
    try:
        with ExitStack() as stack:
            rings = create_rings(plan, stack)
            size = sum(ring.slots * ring.slot_dtype.itemsize for ring in rings.values())
            left = shutil.disk_usage(FOLDER).free
    except RingError as error:
        yield Finding(
            "shared memory",
            "fail",
            str(error),
            f"enlarge {FOLDER}, set a smaller [acquisition] largest, or end the other session: python -m rtevo.shm lists the rings",
        )
        return
    what = f"{FOLDER}: {len(rings)} rings, {megabytes(size)}; {megabytes(left)} left"
    figures: dict[str, float | None] = {"rings_bytes": size, "left_bytes": left}
    to_do = f"enlarge it: mount -o remount,size=SIZE {FOLDER} (container: --shm-size), or set a smaller [acquisition] largest"
    yield Finding("shared memory", "warn" if left < size / 4 else "pass", what, to_do if left < size / 4 else "", figures)

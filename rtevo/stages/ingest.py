"""The scanner's files or messages -> ``volumes``."""

from __future__ import annotations

import datetime
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rtevo.errors import DataError, GeometryError
from rtevo.ingest import Volume
from rtevo.ingest.header import Likeness
from rtevo.records import ACQUISITION_BYTES, Grid, RunClock, VolumeFlag, put_volume
from rtevo.session.context import Context
from rtevo.session.identity import misnamed
from rtevo.shm import Ring
from rtevo.wire import KeyFile
from rtevo.wire.keys import SUPPORT_FILE

LOOPBACK = "127.0.0.1"
NO_GRID = Grid((1, 1, 1), np.eye(4))  # of a volume that is missing before any has come
SETTLE_S = 0.02  # shortest time that a file must have stayed as it is: see rtevo.ingest.whole
FIRST_VOLUMES = 8  # of a doubtful series, that are held back while a better one may begin
MOST_WORDS, WORDS_A_S = 200, 0.5  # problems that are named at once, and in a second after that: a flood of them is counted
LEAST_MOST, VOLUMES_A_FILE = (
    1 << 28,
    64,
)  # bytes of a DICOM file, and of the session's largest volumes in one
LONGEST = 100  # characters of one header entry, if the whole is too long
TR_OFF = 0.01  # of the session's repetition time: how far the headers' may be from it


class Source(Protocol):
    """Where volumes come from: :class:`rtevo.ingest.FolderSource` and its like."""

    problems: list[str]
    alarms: set[str]

    @property
    def told(self) -> str: ...
    @property
    def tr_s(self) -> float | None: ...
    def poll(self) -> list[Volume]: ...
    def finish(self) -> list[Volume]: ...
    def close(self) -> None: ...
    def sidecar(self, volume: Volume) -> dict[str, Any]: ...


def run(context: Context) -> None:
    """The scanner's files or messages -> ``volumes``."""
    _plan, clock = context.plan, context.clock
    out = context.writer("volumes")
    source, ready = _open(context)
    context.ready(**ready)
    teller, publisher = _Teller(context, source), _Publisher(context, out)
    doubtful = _Doubtful(context, source)
    others = _Others(context, source)
    while True:
        delivered, draining = clock.get("delivered"), bool(clock.get("drain") or clock.get("abort"))
        volumes = source.poll()
        if draining:
            volumes += source.finish()
        for volume in doubtful.pass_on(volumes, draining):
            publisher.publish(volume, source)
        teller.tell()
        others.look()
        if draining or not (volumes or getattr(source, "backlog", 0)):
            clock.set("settled", delivered)
        if draining:
            break
        if not volumes:
            time.sleep(0.001 if clock.lock_step else 0.01)
    source.close()
    out.close_writing()
    streams = getattr(others.source, "streams", ())
    context.tell("series", uids=sorted({uid for stream in streams for uid in (stream.key.uid, stream.series.uid)}))


def _open(context: Context) -> tuple[Any, dict[str, Any]]:
    """The source, and its properties that other parts need."""
    from rtevo.ingest import DicomReceiver, FolderSource

    plan, settings = context.plan, context.config.acquisition
    watched = settings.source == "watch"
    address, port, peers = (settings.address, settings.port, settings.peers) if watched else (LOOPBACK, 0, ())
    patience_s, clock_ns, opened = settings.patience_tr * plan.tr_s, context.clock.now_ns, _trigger(context)
    if settings.delivery == "push":
        from rtevo.ingest.push import PushSource

        pushed = PushSource(
            f"tcp://{address}:{port}",
            patience_s=patience_s,
            peers=peers,
            clock_ns=clock_ns,
            confirm=True,
            opened=opened,
            most_voxels=plan.capacity,
            echoes=settings.echoes,
            keys=KeyFile.read(Path(settings.keys) / SUPPORT_FILE, "support") if watched and settings.keys else None,
        )
        context.log.info("ingest: scripts push volumes to %s", pushed.endpoint)
        return pushed, {"volumes_port": int(pushed.endpoint.rpartition(":")[2])}
    options: dict[str, Any] = {
        "series": settings.series or None,
        "patience_s": patience_s,
        "stall_s": settings.stall_s,
        "clock_ns": clock_ns,
        "confirm": True,
        "opened": opened,
        "replaceable": lambda: not context.clock.get("shown"),
        "confined": True,
        "echoes": settings.echoes,
        **({"most_bytes": max(LEAST_MOST, VOLUMES_A_FILE * 4 * plan.capacity * settings.echoes)} if watched else {}),
    }
    source: DicomReceiver | FolderSource
    ready = {}
    if settings.delivery == "dicom":
        source = DicomReceiver(plan.incoming, port, address=address, ae_title=settings.ae_title, peers=peers, **options)
        context.log.info("ingest: %s receives DICOM at %s, port %d", settings.ae_title, address, source.port)
        ready["volumes_port"] = source.port
    else:
        source = FolderSource(plan.incoming, settle_s=SETTLE_S if context.clock.speed == 1 else None, **options)
    if watched:
        context.log.info("ingest: reading the files that %s already holds", plan.incoming)
        if before := source.pass_over_present(plan.visit.passed if plan.visit else ()):
            context.log.info("ingest: %s", before)
    return source, ready


def _trigger(context: Context) -> Callable[[], int | None] | None:
    """Return what says when the trigger was, session time in ns; None in lock-step, where nothing comes unasked."""
    clock = context.clock
    return None if clock.lock_step else lambda: clock.get("trigger_ns") if clock.get("triggered") else None


class _Doubtful:
    """Holds back the first volumes of a series that may not be the run, as long as a better one may come: nothing has been shown yet."""

    def __init__(self, context: Context, source: Any) -> None:
        self._context, self._source = context, source
        self._held: list[Volume] = []

    def pass_on(self, volumes: list[Volume], draining: bool) -> list[Volume]:
        """Return those that can be passed on."""
        if volumes and self._held and volumes[0].index <= self._held[0].index and not volumes[0].flags & VolumeFlag.LATE:
            self._context.log.warning("ingest: %d volumes of the previous series are not used", len(self._held))
            self._held = []
        self._held += volumes
        if not draining and getattr(self._source, "doubtful", False) and len(self._held) < FIRST_VOLUMES:
            return []
        passed, self._held = self._held, []
        return passed


class _Others:
    """Logs received volumes that are not the run's: those before the trigger, and a series that began after the run's last volume."""

    def __init__(self, context: Context, source: Any) -> None:
        self._context, self.source = context, getattr(source, "source", source)  # of a receiver: the folder that it writes to
        self._named: set[tuple[str, int]] = set()

    def look(self) -> None:
        """Pass on new volumes."""
        clock, source = self._context.clock, self.source
        if getattr(source, "before_trigger", 0) and not (clock.get("early_ns") or clock.get("triggered")):
            clock.set("early_ns", clock.now_ns())
        run: Any = getattr(source, "run", None)
        for stream in () if run is None else source.streams:
            began = stream.key.uid, round(stream.first_s * 1e9)
            other = stream.series.uid != run.series.uid and stream.likeness != Likeness.UNLIKELY
            if other and began[1] > clock.get("volume_ns") > 0 and began not in self._named:
                self._named.add(began)
                self._context.tell("elsewhere", text=stream.label)
        if run is not None and run.assembler.again_s < math.inf and (run.key.uid, 0) not in self._named:
            self._named.add((run.key.uid, 0))
            self._context.tell("elsewhere", text=f"another run under the same number, {run.label},")


class _Teller:
    """Logs the series in use, and its problems; each once."""

    def __init__(self, context: Context, source: Source) -> None:
        self._context, self._source = context, source
        self._problems = 0
        self._told = False
        self._room, self._looked_s, self._untold = float(MOST_WORDS), time.monotonic(), 0

    def tell(self) -> None:
        """Log what is new."""
        log, source = self._context.log, self._source
        if not self._told and (told := source.told):
            self._told = True
            log.info("ingest: the run is %s", told)
            expected, found = self._context.plan.tr_s, source.tr_s
            if found and abs(found - expected) > TR_OFF * expected:
                log.warning(
                    "ingest: the repetition time is %g s by the headers, %g s in this session ([acquisition] tr_s)", found, expected
                )
        problems = source.problems
        now_s = time.monotonic()
        self._room, self._looked_s = min(MOST_WORDS, self._room + (now_s - self._looked_s) * WORDS_A_S), now_s
        for problem in problems[self._problems :]:
            alarm = problem in source.alarms
            if self._room < 1 and not alarm:
                self._untold += 1
                continue
            self._room -= not alarm
            log.log(logging.ERROR if alarm else logging.WARNING, "ingest: %s", problem)
        self._problems = len(problems)
        if self._untold and self._room >= MOST_WORDS / 2:
            self._room -= 1
            log.warning("ingest: %d more problems with received files, too many to list", self._untold)
            self._untold = 0


def _told(acquisition: dict[str, Any]) -> bytes:
    """Write what the headers say; of very many slices without their times, and then of long texts without them."""
    text = json.dumps(acquisition).encode() if acquisition else b""
    if len(text) > ACQUISITION_BYTES:
        text = json.dumps({name: value for name, value in acquisition.items() if name != "SliceTiming"}).encode()
    if len(text) > ACQUISITION_BYTES:
        text = json.dumps({name: value for name, value in acquisition.items() if len(json.dumps(value)) <= LONGEST}).encode()
    return text if len(text) <= ACQUISITION_BYTES else b""


class _Publisher:
    """Puts volumes into the ring. The first one decides on which grid the run lies."""

    def __init__(self, context: Context, out: Ring) -> None:
        self._log, self._out = context.log, out
        self._capacity, self._first = context.plan.capacity, context.plan.first_volume
        self._clock, self._tr_s = context.clock, context.plan.tr_s
        self._grid: Grid | None = None
        self._settings, self._named = context.config.acquisition, False

    def publish(self, volume: Volume, source: Source) -> None:
        """Publish a volume; one that lies on another grid than the run's first is named, and is as good as missing.

        Raises
        ------
        GeometryError
            The run's volumes are larger than the ring's places.
        DataError
            They are of another participant or day than the session.
        """
        self._check_names(source)
        data, acquisition, flags = volume.data, {}, int(volume.flags)
        if data is not None and self._grid is None:
            self._grid = self._checked(volume)
            acquisition = source.sidecar(volume)
        elif data is not None and self._grid is not None and (difference := self._grid.difference(volume.grid)):
            self._log.warning("ingest: volume %d (%s) lies elsewhere than the run's first, and counts as missing: %s",
                              volume.index, volume.files[0], difference)  # fmt: skip
            data, flags = None, flags | VolumeFlag.MISSING
        with self._out.reserve(timeout_s=None) as slot:  # a slow disk holds it up, and loses nothing
            slot["index"], slot["flags"], slot["acquired_s"] = self._first + volume.index, flags, volume.acquired_s
            slot["closed_ns"] = volume.closed_ns
            slot["acquisition"] = _told(acquisition)
            put_volume(slot, data, self._grid or NO_GRID)
            slot["ingested_ns"] = time.monotonic_ns()
        if data is not None:
            self._heard(volume.index)

    def _check_names(self, source: Source) -> None:
        """Compare the run's headers with the session's participant and day, before its first volume: without one nothing is shown."""
        run: Any = getattr(getattr(source, "source", source), "run", None)
        if self._named or (run is None and self._settings.anonymous == "accept"):
            return
        self._named = True
        patient_id, study_date = ("", "") if run is None else (run.series.patient_id, run.series.study_date)
        if problem := misnamed(self._settings, patient_id, study_date, datetime.datetime.now()):
            raise DataError(problem)

    def _heard(self, index: int) -> None:
        """Record in the shared words that a volume of the run has come in, and after what time."""
        clock = self._clock
        now_ns = clock.now_ns()
        if not clock.get("triggered"):
            clock.set("early_ns", clock.get("early_ns") or now_ns)
        else:
            run = RunClock(self._tr_s, trigger_ns=clock.get("trigger_ns"))
            delay_s = run.seconds(now_ns) - (index + 1) * self._tr_s
            clock.set("delay_ns", max(clock.get("delay_ns"), round(1e9 * delay_s)))
        clock.set("volume_ns", now_ns)
        clock.set("volume_count", clock.get("volume_count") + 1)

    def _checked(self, volume: Volume) -> Grid:
        voxels = math.prod(volume.grid.shape)
        if voxels > self._capacity:
            raise GeometryError(
                f"the run's volumes ({volume.files[0]}) have {' x '.join(map(str, volume.grid.shape))} voxels, expected at most "
                f"{self._capacity:,} in all: set [acquisition] largest to these"
            )
        return volume.grid

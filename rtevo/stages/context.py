"""What every stage sees of its session: the plan, the clock, its rings, and a pipe to the supervisor."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rtevo import records
from rtevo.clock import Clock
from rtevo.config import Config
from rtevo.shm import Reader, Ring, RingClosed, RingTimeout, WriterLost, wait_any

__all__ = [
    "OBSERVERS",
    "RINGS",
    "WAIT_S",
    "Context",
    "Plan",
    "RingSpec",
    "Turns",
    "create_rings",
    "numbered",
    "readers_of",
    "ring_name",
    "ring_names",
    "serve",
]

InputT = TypeVar("InputT", bound="Ring | Turns")

WAIT_S = 0.1  # how often a waiting stage looks at the shared words
LOST_S = 0.02  # pause where a ring's writer is dead
MOST_PLACES = 16384
PROGRESS_S = 0.5  # how often a stage says how far it is


@dataclass(frozen=True)
class Plan:
    """All that a process needs to know; decided before the first one starts.

    Parameters
    ----------
    name : str
        Of the session, in the names of its rings.
    config : Config
    condition : str
        What drives evolution; the session file's, or that of the blinding key.
    out : Path
        Where results go.
    runtime : Path
        Folder for what only lives as long as the session (shared words, simulated scanner's files, sockets).
    incoming : Path
        Folder that volumes arrive in.
    capacity : int
        Voxels of the largest volume that may come.
    tr_s : float
    decoder : Path
        Decoder folder.
    decoder_name : str or None
    embedding_size : int
    image_size : tuple of int
        Height, width.
    part : int
        0, or how often the session has been resumed.
    first_volume : int
        Number of this part's first volume: parts are counted through.
    rebaseline : bool
        A resumed part scores its images from its own volumes alone.
    token : str
        What a browser has to know to see the console; empty: nothing.
    attended : bool
        Somebody can answer questions: at the console, or at the terminal.
    """

    name: str
    config: Config
    condition: str
    out: Path
    runtime: Path
    incoming: Path
    capacity: int
    tr_s: float
    decoder: Path
    decoder_name: str | None
    embedding_size: int
    image_size: tuple[int, int]
    part: int = 0
    first_volume: int = 0
    rebaseline: bool = False
    token: str = field(default="", repr=False)
    attended: bool = False

    @property
    def latent_space(self) -> Path:
        """The latent space's npz file."""
        return self.out / "latent_space.npz"

    @property
    def devices(self) -> int:
        """Number of processes that paint: one for each device."""
        return len(self.config.generator.devices)

    @property
    def participant_endpoint(self) -> str:
        """Where a simulated participant looks at the headless presenter's screen."""
        return f"ipc://{self.runtime}/participant"


@dataclass(frozen=True)
class RingSpec:
    """One ring: what a slot holds, how many, who writes and who must not miss anything."""

    slot: Callable[[Plan], np.dtype[np.void]]
    slots: Callable[[Plan], int]
    critical: tuple[str, ...]


def _aligned(plan: Plan) -> np.dtype[np.void]:
    return records.aligned_dtype(plan.capacity if _saves_aligned(plan) else None)


def _saves_aligned(plan: Plan) -> bool:
    return plan.config.record.save_volumes in ("aligned", "both")


def _small(plan: Plan) -> int:
    return max(256, 4 * plan.config.evolution.population)


def _every_image(plan: Plan) -> int:
    """Places for what is said of every image at once, at a session's end or when it is taken up: observers must not miss any of it."""
    settings = plan.config.evolution
    return max(_small(plan), min(4 * settings.generations * settings.population, MOST_PLACES))


def _generation(plan: Plan) -> int:
    return max(8, plan.config.evolution.population)


RINGS: dict[str, RingSpec] = {
    "volumes": RingSpec(lambda p: records.volume_dtype(p.capacity), lambda p: 16, ("decode", "record")),
    "aligned": RingSpec(_aligned, lambda p: 16 if _saves_aligned(p) else 64, ("record",)),
    "placements": RingSpec(lambda p: records.placement_dtype(), lambda p: 64, ()),
    "scores": RingSpec(lambda p: records.score_dtype(), _every_image, ("evolve",)),
    "fitness": RingSpec(lambda p: records.fitness_dtype(), _every_image, ()),
    "latents": RingSpec(lambda p: records.latent_dtype(p.config.evolution.latent_size, p.embedding_size), _small, ("generate",)),
    "images": RingSpec(lambda p: records.image_dtype(*p.image_size, p.embedding_size), _generation, ("bridge", "evolve")),
    "events": RingSpec(lambda p: records.event_dtype(), lambda p: 1024, ("decode", "evolve")),
    "messages": RingSpec(lambda p: records.message_dtype(), lambda p: 256, ()),  # the supervisor's
}
OBSERVERS = {
    "record": ("volumes", "aligned", "placements", "scores", "fitness", "latents", "images", "events", "messages"),
    "status": ("aligned", "placements", "scores", "fitness", "events"),
}


def ring_name(session: str, ring: str) -> str:
    """Name of a session's ring in shared memory."""
    return f"/rtevo-{session}-{ring}"


def numbered(name: str, devices: int) -> tuple[str, ...]:
    """Names of a stage or ring of which there is one for each device: ``images``, ``images-1``, ..."""
    return (name, *(f"{name}-{k}" for k in range(1, devices)))


def readers_of(ring: str, devices: int = 1) -> list[str]:
    """Names of a ring's readers, the critical ones first."""
    base = ring.partition("-")[0]
    critical = numbered("generate", devices) if base == "latents" else RINGS[base].critical
    return [*critical, *(reader for reader, seen in OBSERVERS.items() if base in seen and reader not in critical)]


def ring_names(plan: Plan, names: Iterable[str] = RINGS) -> list[str]:
    """Give the names of a session's rings: of those that each device has, all."""
    return [each for name in names for each in (numbered(name, plan.devices) if name == "images" else (name,))]


def create_rings(plan: Plan, stack: ExitStack) -> dict[str, Ring]:
    """Create every ring of a session; `stack` unlinks them."""
    rings = {}
    for name in ring_names(plan):
        spec = RINGS[name.partition("-")[0]]
        readers = [
            Reader(r, critical=r not in OBSERVERS or r in spec.critical, semaphore=f"/rtevo-{plan.name}-{r}")
            for r in readers_of(name, plan.devices)
        ]
        ring = Ring.create(ring_name(plan.name, name), spec.slot(plan), spec.slots(plan), readers, writer=name == "messages")
        rings[name] = stack.enter_context(ring)
    return rings


class _PipeHandler(logging.Handler):
    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__()
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self.tell("log", level=record.levelname, text=record.getMessage())


class Context:
    """What a stage sees of the session: the plan, the clock, its rings, and a pipe to the supervisor.

    Parameters
    ----------
    stage : str
    plan : Plan
    pipe : Connection
        Control messages (JSON): progress, ready, log, done, error out; go in. Its end tells that the supervisor is gone.
    """

    def __init__(self, stage: str, plan: Plan, pipe: Connection) -> None:
        self.stage, self.plan, self._pipe = stage, plan, pipe
        self.config = plan.config
        self._lock, self._go = threading.Lock(), threading.Event()
        self._told: dict[str, Any] = {}
        self._progress_s = -math.inf
        self._stack = ExitStack()
        self.clock = self._stack.enter_context(Clock(plan.runtime / "clock"))
        self.log = logging.getLogger("rtevo")
        self.log.setLevel(logging.INFO)
        self.log.addHandler(_PipeHandler(self.tell))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                self._told = json.loads(self._pipe.recv_bytes())
                self._go.set()
        except (EOFError, OSError):
            os._exit(3)  # the supervisor is gone; the next start cleans up

    def tell(self, kind: str, **payload: Any) -> None:
        """Send the supervisor a control message."""
        with self._lock:
            self._pipe.send_bytes(json.dumps({"kind": kind, "stage": self.stage, **payload}).encode())

    def ready(self, **payload: Any) -> None:
        """Say that this stage is warm; the payload reaches every stage that waits for go."""
        self.tell("ready", payload=payload)

    def progress(self, text: str) -> None:
        """Say how far becoming ready has come: what takes long is not taken for a stage that hangs."""
        if time.monotonic() > self._progress_s + PROGRESS_S:
            self._progress_s = time.monotonic()
            self.tell("progress", text=text)

    def wait_for_go(self) -> dict[str, Any]:
        """Wait until every stage is ready; give what all of them told. Empty where the session ends before."""
        while not self._go.wait(WAIT_S):
            if self.clock.ending:
                break
        return self._told

    def writer(self, ring: str) -> Ring:
        """Attach as the ring's writer."""
        return self._stack.enter_context(Ring.attach(ring_name(self.plan.name, ring), writer=True))

    def reader(self, ring: str) -> Ring:
        """Attach as the ring's reader of this stage's name."""
        return self._stack.enter_context(Ring.attach(ring_name(self.plan.name, ring), reader=self.stage))

    def images(self) -> Turns:
        """Attach as the reader of every device's images, in the order in which they were asked for."""
        return Turns([self.reader(name) for name in numbered("images", self.plan.devices)], self.stage)

    def close(self) -> None:
        """Detach from everything."""
        self._stack.close()


class Turns:
    """Rings that were dealt to in turn, read as if they were one: the first message is in the first ring, the next in the second, ...

    It has ended when the ring whose turn it is has ended. A reader that was started again goes on where it had stopped.

    Parameters
    ----------
    rings : sequence of Ring
        Attached as `reader`.
    reader : str
    """

    def __init__(self, rings: Sequence[Ring], reader: str) -> None:
        self._rings = rings
        self._taken = sum(ring.published - ring.lag(reader) for ring in rings)

    @property
    def now(self) -> Ring:
        """The ring whose turn it is."""
        return self._rings[self._taken % len(self._rings)]

    @contextmanager
    def read(self, timeout_s: float | None = None) -> Iterator[np.void]:
        """Read the next message; see :meth:`rtevo.shm.Ring.read`."""
        with self.now.read(timeout_s) as slot:
            yield slot
        self._taken += 1


def serve(inputs: dict[str, InputT], handlers: Mapping[str, Callable[[Any], None]], timeout_s: float) -> list[str]:
    """Wait until an input has something, hand each waiting slot to its handler, in the order of `inputs`, and then release it.

    Returns
    -------
    list of str
        The inputs that have ended; they are taken out of `inputs`.
    """
    now = {name: ring.now if isinstance(ring, Turns) else ring for name, ring in inputs.items()}
    names = {ring.name: name for name, ring in now.items()}
    ended = []
    for ring in wait_any(list(now.values()), timeout_s):
        name = names[ring.name]
        try:
            while True:
                with inputs[name].read(timeout_s=0) as slot:
                    handlers[name](slot)
        except RingTimeout:
            continue
        except WriterLost:
            time.sleep(LOST_S)  # the supervisor starts it again, or ends the session
        except RingClosed:
            del inputs[name]
            ended.append(name)
    return ended

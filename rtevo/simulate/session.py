"""The scanner room of a rehearsal: a run of the simulated scanner with the simulated participant in it, one loop over session time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import LinkError
from rtevo.simulate.body import SensorFile
from rtevo.simulate.concept import ConceptPreference
from rtevo.simulate.head import Head
from rtevo.simulate.participant import Behaviour, Participant, ParticipantLink, Preference, Vigilance
from rtevo.simulate.refractory import Refractory
from rtevo.simulate.scanner import BEHAVIOUR, SENSORS, Scanner, Simulation
from rtevo.simulate.truth import HiddenTruth
from rtevo.wire import Pressed, Shown

__all__ = ["RealTime", "Room", "SessionTime", "VolumeWriter", "run_scanner"]

_PEEK_S = 0.05  # interval at which a wait for the presenter checks that the session still runs


class VolumeWriter(Protocol):
    """Delivers volumes, for example :class:`rtevo.simulate.dicom.MosaicWriter`, or one that loses or garbles some."""

    def write(self, index: int, volume: NDArray[np.int16]) -> object:
        """Deliver volume `index`, int16 (X, Y, Z)."""
        ...


class SessionTime(Protocol):
    """Session time, as the scanner needs it: :class:`rtevo.session.clock.Clock` or :class:`RealTime`."""

    @property
    def lock_step(self) -> bool:
        """Whether time is virtual and stands still while anyone is at work."""
        ...

    def now_s(self) -> float:
        """Session time now, s."""
        ...

    def session_ns(self, monotonic_ns: int) -> int:
        """Session time of a moment on the presenter's clock, ns."""
        ...

    def wait_until(self, t_s: float, serve: Callable[[float], bool]) -> bool:
        """Wait for a session time.

        Parameters
        ----------
        t_s : float
            Session time, s; may have passed.
        serve : callable
            Called again and again with the longest (real) time in seconds that it may take. Where it returns True the wait must end at
            once, because what to wait for may have changed; in lock-step time must then stand still until the next call.

        Returns
        -------
        bool
            False where the session asks the scanner to stop, else True: the time has come, or `serve` returned True.
        """
        ...


@dataclass
class RealTime:
    """Session time that starts when this is made and runs `speed` times as fast as the computer's monotonic clock.

    Parameters
    ----------
    speed : float
        1 for real time.
    stop : callable
        Returns True once the scanner shall stop.
    """

    speed: float = 1.0
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self._zero_ns = time.monotonic_ns()

    @property
    def lock_step(self) -> bool:
        """Never."""
        return False

    def now_s(self) -> float:
        """Session time now, s."""
        return self.session_ns(time.monotonic_ns()) / 1e9

    def session_ns(self, monotonic_ns: int) -> int:
        """Session time of a moment of the monotonic clock, ns."""
        return round((monotonic_ns - self._zero_ns) * self.speed)

    def wait_until(self, t_s: float, serve: Callable[[float], bool]) -> bool:
        """See :class:`SessionTime`."""
        while not self.stop():
            left_s = (t_s - self.now_s()) / self.speed
            if left_s <= 0 or serve(min(left_s, _PEEK_S)):
                return True
        return False


class Room:
    """The scanner room as the session sees it: someone looks at the presenter's screen and presses keys; the scanner types the trigger.

    A context manager: leaving it completes the log of the hidden truth.

    Parameters
    ----------
    link : ParticipantLink
        To the presenter; stays open.
    session_time : SessionTime
        Drives all waits.
    participant : Participant, optional
        Who looks. Without one, every picture is taken in and nothing follows (a replayed series).
    truth : HiddenTruth, optional
        Log of what the participant sees.

    Attributes
    ----------
    start_s : float
        Session time at which the first volume starts; set by :meth:`begin`.
    """

    def __init__(
        self,
        link: ParticipantLink,
        session_time: SessionTime,
        participant: Participant | None = None,
        truth: HiddenTruth | None = None,
    ) -> None:
        self.link, self.time, self.participant, self.truth = link, session_time, participant, truth
        self.start_s = 0.0
        self.patience_s = 60.0
        self._pressed = False  # the presenter has taken the last key

    def __enter__(self) -> Room:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.truth is not None:
            self.truth.close(self.participant)

    def begin(self, lead_s: float, trigger_key: str, patience_s: float = 60.0) -> bool:
        """Wait for the presenter's first flip, and press the trigger `lead_s` of session time later.

        Parameters
        ----------
        lead_s : float
            From the first flip to the trigger, s.
        trigger_key : str
            Its key.
        patience_s : float
            Longest (real) wait for the presenter: now, and in lock-step at every key.

        Returns
        -------
        bool
            False where the session stops before.

        Raises
        ------
        LinkError
            If the presenter does not connect.
        """
        self.patience_s = patience_s
        if not self._wait_for_presenter():
            return False
        self.start_s = self.time.now_s() + lead_s
        if not self.wait_until(self.start_s):
            return False
        self._press(trigger_key, self.start_s)
        return True

    def wait_until(self, t_s: float) -> bool:
        """Wait until session time `t_s`, looking and pressing keys meanwhile; False if the session stops before.

        Raises
        ------
        LinkError
            If, in lock-step, the presenter does not take a key.
        """
        while True:
            planned = self.participant.planned if self.participant is not None else None
            key_s = math.inf if planned is None else self.start_s + planned[0]
            if not self.time.wait_until(min(t_s, key_s), self.link.poll):
                return False
            if self._serve():
                continue  # what to wait for may have changed
            if self.participant is None or planned is None or key_s > t_s:
                return True
            self.participant.pressed()
            self._press(planned[1], key_s)

    def _serve(self) -> bool:
        """Deal with every message that waits; say whether there was one."""
        served = False
        while (received := self.link.receive()) is not None:
            served = True
            message, pixels = received
            if isinstance(message, Shown):
                self._look(message, pixels)
                self.link.seen(message.t_ns)
            self._pressed |= isinstance(message, Pressed)
        return served

    def _look(self, message: Shown, pixels: NDArray[np.uint8] | None) -> None:
        if self.participant is None:
            return
        shown_s = self.time.now_s() if self.link.elsewhere else self.time.session_ns(message.t_ns) / 1e9  # another computer's clock
        viewing = self.participant.look(message.kind, shown_s - self.start_s, pixels)
        if viewing is not None and self.truth is not None:
            self.truth.picture(viewing)

    def _press(self, key: str, t_s: float) -> None:
        """Press a key at session time `t_s`; in lock-step, wait until all that it caused has been done."""
        self._pressed = False
        self.link.press(key, round(t_s * 1e9) if self.time.lock_step else 0)
        deadline = time.monotonic() + self.patience_s
        while self.time.lock_step and not self._pressed:
            if time.monotonic() > deadline:
                raise LinkError(f"participant link: the presenter has not taken key {key!r} within {self.patience_s:g} s")
            if self.link.poll(_PEEK_S):
                self._serve()

    def _wait_for_presenter(self) -> bool:
        deadline = time.monotonic() + self.patience_s
        self._serve()
        while not self.link.connected:
            if time.monotonic() > deadline:
                raise LinkError(f"participant link: no presenter has connected to {self.link.endpoint} within {self.patience_s:g} s")
            if not self.time.wait_until(self.time.now_s() + _PEEK_S, self.link.poll):
                return False
            self._serve()
        return True


def run_scanner(
    settings: Simulation,
    writer: VolumeWriter,
    link: ParticipantLink,
    session_time: SessionTime,
    out: Path,
    *,
    volumes: int | None = None,
    preference: Preference | None = None,
    head: Head | None = None,
    on_volume: Callable[[int], None] | None = None,
    patience_s: float = 60.0,
    first_volume: int = 0,
    task: str = "",
    sensors: Path | None = None,
) -> int:
    """Scan the simulated participant until the session says stop.

    Waits for the presenter's first flip, then presses the trigger key at the start of the first volume, one repetition time later.
    Volume ``k`` is delivered when session time is ``k + 1`` repetition times after that.

    Parameters
    ----------
    settings : Simulation
        The participant and the scan protocol.
    writer : VolumeWriter
        Where volumes go.
    link : ParticipantLink
        To the presenter; stays open.
    session_time : SessionTime
        Drives the loop.
    out : Path
        Existing folder for the log of the hidden truth.
    volumes : int, optional
        Stop after so many.
    preference : Preference, optional
        What the participant likes; the settings' if None.
    head : Head, optional
        The participant's head, if it is at hand.
    on_volume : callable, optional
        Called with the index of each volume once it has been delivered.
    patience_s : float
        Longest (real) wait for the presenter.
    first_volume : int
        What the log of the hidden truth calls the first volume: more than 0 where the run was interrupted and is taken up.
    task : str
        That the participant does with pictures of known categories ("one-back", "detection"); empty: none.
    sensors : Path, optional
        File that pulse and respiration are written into, where the settings have any.

    Returns
    -------
    int
        Number of volumes delivered.

    Raises
    ------
    LinkError
        If the presenter does not connect, or (in lock-step) does not take a key.
    """
    head = head or settings.head()
    liked = preference or settings.preference()
    scanner = Scanner(head, settings)
    vigilance = Vigilance(task, settings.keys[0]) if task else None
    areas = [ConceptPreference(name) for name in settings.areas]
    less, behaviour = Refractory() if settings.refractory else None, Behaviour(keys=settings.keys)
    participant = Participant(liked, settings.rng(BEHAVIOUR), settings.amplitude_percent, behaviour, vigilance, areas, less)
    hidden = {"voxels": int((head.gains != 0).sum()), "preference": liked.settings(), "simulation": settings.as_dict()}
    truth = HiddenTruth(out, {**hidden, "behaviour": asdict(participant.behaviour)}, settings.part, first_volume)
    with Room(link, session_time, participant, truth) as room:
        scanner.prepare(0)
        if not room.begin(settings.tr_s, settings.trigger_key, patience_s):
            return 0
        file = SensorFile(sensors, scanner.body, settings.rng(SENSORS)) if sensors is not None and scanner.body is not None else None
        index = 0
        while volumes is None or index < volumes:
            if index:
                scanner.prepare(index)
            if not room.wait_until(room.start_s + (index + 1) * settings.tr_s):
                break
            if file is not None:
                file.until((index + 1) * settings.tr_s, room.start_s)
            writer.write(index, scanner.acquire(index, participant))
            truth.volume(index, scanner.params(index))
            if on_volume is not None:
                on_volume(index)
            index += 1
    return index

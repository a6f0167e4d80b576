"""Versioned messages between the support computer, the stimulus PC and the simulated participant.

Standard library and msgpack only, Python 3.10 or later, because the stimulus PC has no more than PsychoPy brings.

A message is one ZeroMQ frame, or two where it carries pixels::

    frame 0   msgpack [MAGIC, PROTOCOL, name of the message, {field: value}]     at most MAX_HEADER_BYTES
    frame 1   raw pixels, uint8, height x width x 3, row 0 at the top, RGB       at most MAX_PIXEL_BYTES

Support computer (ROUTER) and presenter (DEALER)::

    presenter                                  bridge
    Hello            ->                                      again after silence, until Welcome
                            <-    Welcome | Refused          settings of the session
                            <-    Ping                       clock samples and sign of life
    Pong             ->
                            <-    Image, Tick, End           numbered: `sequence` 1, 2, 3, ...
    Event, Idle, Ready ->                                    numbered, on their own count
    Ack              ->     <-    Ack                        everything up to `received` has come

Numbered messages are kept by their sender (`Outbox`) until they are acknowledged and sent again after a reconnect; their receiver
(`Inbox`) takes each once and in order.

Simulated participant (ROUTER or PAIR, binds) and headless presenter (DEALER, connects)::

    presenter                                  participant
    Shown + pixels   ->                                      after every flip: what is on the screen from `t_ns` on
                            <-    Seen                       at once, also while the participant itself waits for a Pressed
                            <-    Key
    Pressed          ->                                      what the key caused has been acknowledged by the bridge

In lock-step the presenter waits for Seen before it goes on; at real or scaled speed it does not wait.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]

__all__ = [
    "FOREVER_NS",
    "MAX_HEADER_BYTES",
    "MAX_PIXEL_BYTES",
    "PROTOCOL",
    "Ack",
    "End",
    "Event",
    "Hello",
    "Idle",
    "Image",
    "Inbox",
    "Key",
    "KeyFile",
    "Kind",
    "Message",
    "Numbered",
    "Outbox",
    "Ping",
    "Pong",
    "PresentationSettings",
    "Pressed",
    "Ready",
    "Refused",
    "Seen",
    "Shown",
    "Tick",
    "VersionError",
    "Welcome",
    "WireError",
    "decode",
    "encode",
    "is_loopback",
]

PROTOCOL = 1
MAGIC = "rtevo"
MAX_HEADER_BYTES = 64 * 1024
MAX_PIXEL_BYTES = 64 * 1024 * 1024
MAX_SIDE = 8192  # pixels
MAX_TEXT_BYTES = 96  # of an event
FOREVER_NS = 2**63 - 1  # "until something happens"


class WireError(ValueError):
    """A message or a setting is not what the protocol allows.

    Parameters
    ----------
    mistakes : str or list of str
        What was found, one line each.
    """

    def __init__(self, mistakes: str | list[str]) -> None:
        self.mistakes = [mistakes] if isinstance(mistakes, str) else list(mistakes)
        super().__init__("\n".join(self.mistakes))


class VersionError(WireError):
    """The other side speaks another version of the protocol.

    Parameters
    ----------
    found : int
        Its version.
    """

    def __init__(self, found: int) -> None:
        self.found = found
        super().__init__(
            f"the other computer speaks protocol {found}, this one protocol {PROTOCOL}: install the same version of rtevo on both"
        )


class Kind(IntEnum):
    """What an Event reports; the numbers of `rtevo.records.EventKind`."""

    TRIGGER = 1
    ONSET = 2
    OFFSET = 3
    RATING = 4
    FIXATION = 5
    END = 6
    NOTE = 7


@dataclass(frozen=True)
class PresentationSettings:
    """How a session is presented; the bridge sends it to the presenter, which knows nothing else of the session.

    Parameters
    ----------
    image_s, washout_s : float
        Duration of an image and of the fixation after it, s.
    rating_window_s : float
        Longest time for an answer after each image, s; 0 = no rating. The window ends with the answer.
    rating_keys : tuple of str
        Keys of the ratings 0, 1, 2, ...
    trigger_key : str
        Key that the scanner's pulse types.
    baseline_s : float
        Shortest fixation between the trigger and the first image, s.
    end_s : float
        How long the end text stays, s.
    mirrored : bool
        Left and right exchanged, for a screen that is seen through a mirror.
    background : tuple of float, (3,)
        Red, green and blue, 0 to 1.
    image_height : float
        Fraction of the screen's height; 0 = one screen pixel per image pixel.
    full_screen : bool
        Otherwise a window.
    screen : int
        Number of the screen, 0 = the first.
    wait_text, rating_text, end_text : str
        What the participant reads.
    speed : float
        1 = real time; X = all durations are divided by X; 0 = lock-step: time is what the last Tick said.

    Raises
    ------
    WireError
        With every mistake found.
    """

    image_s: float = 3.0
    washout_s: float = 1.0
    rating_window_s: float = 0.0
    rating_keys: tuple[str, ...] = ("1", "2", "3", "4", "6")
    trigger_key: str = "5"
    baseline_s: float = 0.0
    end_s: float = 2.0
    mirrored: bool = False
    background: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_height: float = 0.6
    full_screen: bool = True
    screen: int = 0
    wait_text: str = "The session is about to begin.\n\nPlease look at the middle of the screen and keep still."
    rating_text: str = "How much did you like it?"
    end_text: str = "The session is over. Thank you!"
    speed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rating_keys", "background"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        mistakes = _type_mistakes(self) or list(_setting_mistakes(self))
        if mistakes:
            raise WireError(mistakes)
        for field in dataclasses.fields(self):
            if field.type == "float":
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        object.__setattr__(self, "background", tuple(float(level) for level in self.background))

    @property
    def lock_step(self) -> bool:
        """Whether time is told by Tick messages."""
        return self.speed == 0

    def real_ns(self, duration_s: float) -> int:
        """Nanoseconds of the presenter's clock that `duration_s` seconds of the session take."""
        return round(duration_s * 1e9 / (self.speed or 1.0))


def _setting_mistakes(settings: PresentationSettings) -> list[str]:
    """Every rule of the settings that is broken, one line each."""
    found: list[str] = []

    def check(name: str, fine: bool, rule: str) -> None:
        if not fine:
            found.append(f"presentation {name}: expected {rule}, got {getattr(settings, name)!r}")

    for name, lowest in (("image_s", 0.0), ("washout_s", -1.0), ("rating_window_s", -1.0), ("baseline_s", -1.0), ("end_s", -1.0)):
        value = getattr(settings, name)
        check(name, math.isfinite(value) and value >= 0 and value > lowest, "> 0 seconds" if lowest == 0 else ">= 0 seconds")
    keys = settings.rating_keys
    check("rating_keys", 2 <= len(keys) <= 20 and len(set(keys)) == len(keys) and all(keys), "2 to 20 different keys")
    check("trigger_key", bool(settings.trigger_key) and settings.trigger_key not in keys, "a key that is not a rating key")
    check("trigger_key", settings.trigger_key != "escape", "a key other than escape")
    check("rating_keys", "escape" not in keys, "keys other than escape")
    check("background", len(settings.background) == 3 and all(0 <= x <= 1 for x in settings.background), "three numbers from 0 to 1")
    check("image_height", 0 <= settings.image_height <= 1, "0 to 1")
    check("screen", 0 <= settings.screen <= 15, "0 to 15")
    check("speed", math.isfinite(settings.speed) and settings.speed >= 0, ">= 0")
    for name in ("wait_text", "rating_text", "end_text"):
        check(name, len(getattr(settings, name).encode()) <= 4000, "at most 4000 bytes")
    return found


@dataclass(frozen=True)
class Hello:
    """Presenter: I am here. `received`: highest number taken from the bridge; `display`: "headless" or "psychopy"."""

    software: str
    display: str
    received: int = 0


@dataclass(frozen=True)
class Welcome:
    """Bridge: this is the session. `started`: the trigger has been; `received`: highest number taken; `now_ns`: time in lock-step."""

    session: str
    settings: PresentationSettings
    started: bool = False
    received: int = 0
    now_ns: int = 0


@dataclass(frozen=True)
class Refused:
    """Bridge: not you. `final`: there is no use in trying again."""

    reason: str
    final: bool = True


@dataclass(frozen=True)
class Ping:
    """Bridge: sign of life and clock sample. `sent_ns`: bridge's clock; `received`: highest number taken."""

    sent_ns: int
    received: int = 0


@dataclass(frozen=True)
class Pong:
    """Presenter: answer to a Ping, with the presenter's clock at its arrival and at this answer."""

    ping_ns: int
    arrived_ns: int
    sent_ns: int
    received: int = 0


@dataclass(frozen=True)
class Ack:
    """Everything up to number `received` has come. `missing`: and then one that is not the next: send again."""

    received: int
    missing: bool = False


@dataclass(frozen=True)
class Image:
    """Bridge: an image to show after those sent before it; pixels in the second frame."""

    generation: int
    candidate: int
    height: int
    width: int
    sequence: int = 0


@dataclass(frozen=True)
class Tick:
    """Bridge, in lock-step: it is now `now_ns`."""

    now_ns: int
    sequence: int = 0


@dataclass(frozen=True)
class End:
    """Bridge: finish the current trial, show the end text, say goodbye."""

    reason: str
    sequence: int = 0


@dataclass(frozen=True)
class Ready:
    """Presenter: the display stands and shows the waiting text. `refresh_hz`: measured; 0 in lock-step."""

    display: str
    refresh_hz: float
    sequence: int = 0


@dataclass(frozen=True)
class Event:
    """Presenter: something happened at `t_ns` of its clock (session time in lock-step).

    `kind`: see `Kind`; `generation`, `candidate`: -1 where no image is meant; `value`: the rating (number of its key), NaN where there
    is none; `response_time_s`: session seconds from the flip that opened the rating window, NaN where there is none.
    """

    kind: int
    t_ns: int
    generation: int = -1
    candidate: int = -1
    value: float = math.nan
    response_time_s: float = math.nan
    text: str = ""
    sequence: int = 0


@dataclass(frozen=True)
class Idle:
    """Presenter, in lock-step: nothing to do before `until_ns`, having taken the bridge's messages up to number `seen`."""

    until_ns: int
    seen: int
    sequence: int = 0


@dataclass(frozen=True)
class Shown:
    """Presenter to participant: a flip. `kind`: "image", "fixation", "rating" or "text"; pixels only with an image (else 0 x 0)."""

    kind: str
    t_ns: int
    height: int = 0
    width: int = 0


@dataclass(frozen=True)
class Seen:
    """Participant: the flip at `t_ns` has been taken in."""

    t_ns: int


@dataclass(frozen=True)
class Key:
    """Participant: a key goes down. `t_ns`: in lock-step the session time of the press; otherwise 0, when the message arrives."""

    name: str
    t_ns: int = 0


@dataclass(frozen=True)
class Pressed:
    """Presenter to participant: the key has been taken in, and what it caused has been acknowledged by the bridge."""

    name: str


Numbered = Image | Tick | End | Ready | Event | Idle
Message = Hello | Welcome | Refused | Ping | Pong | Ack | Shown | Seen | Key | Pressed | Numbered
NumberedT = TypeVar("NumberedT", Image, Tick, End, Ready, Event, Idle)
_MESSAGES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (Hello, Welcome, Refused, Ping, Pong, Ack, Image, Tick, End, Ready, Event, Idle, Shown, Seen, Key, Pressed)
}
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,)}


def _fits(value: object, kind: str) -> bool:
    """Whether a value is of the type that a field's annotation names."""
    if kind.startswith("tuple["):
        return isinstance(value, tuple) and all(_fits(item, kind[6:].split(",")[0]) for item in value)
    if kind == "PresentationSettings":
        return isinstance(value, PresentationSettings)
    if isinstance(value, bool) and kind != "bool":
        return False
    if kind == "int" and isinstance(value, int) and not -(2**63) <= value < 2**63:
        return False
    return isinstance(value, _TYPES[kind])


def _type_mistakes(instance: Any) -> list[str]:
    """Fields of a dataclass whose values are not of the annotated type, one line each."""
    name = "presentation" if isinstance(instance, PresentationSettings) else type(instance).__name__
    return [
        f"{name} {field.name}: expected {field.type}, got {getattr(instance, field.name)!r:.80}"
        for field in dataclasses.fields(instance)
        if not _fits(getattr(instance, field.name), str(field.type))
    ]


def encode(message: Message, pixels: Any = None) -> list[bytes]:
    """Make the frames of a message.

    Parameters
    ----------
    message : Message
        One of the message types of this module.
    pixels : buffer, uint8 (height, width, 3), optional
        C-contiguous; with Image and with Shown of an image. It is copied.

    Returns
    -------
    list of bytes
        One frame, or two with pixels.

    Raises
    ------
    WireError
        Where a field is of the wrong type, or the pixels do not fit the message.
    """
    mistakes = _type_mistakes(message)
    if mistakes:
        raise WireError(mistakes)
    header = msgpack.packb([MAGIC, PROTOCOL, type(message).__name__, dataclasses.asdict(message)])
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"{type(message).__name__}: expected at most {MAX_HEADER_BYTES} bytes, got {len(header)}")
    frames = [bytes(header)]
    if pixels is not None:
        frames.append(bytes(memoryview(pixels).cast("B")))
    _check_pixels(message, frames)
    return frames


def decode(frames: Any) -> tuple[Message, memoryview | None]:
    """Read a message from its frames, trusting nothing.

    Parameters
    ----------
    frames : sequence of bytes
        As received.

    Returns
    -------
    message : Message
        The message.
    pixels : memoryview, uint8 (height * width * 3,), or None
        A read-only view of the second frame.

    Raises
    ------
    VersionError
        The other side speaks another version of the protocol.
    WireError
        The frames are not a message.
    """
    if not 1 <= len(frames) <= 2:
        raise WireError(f"message: expected 1 or 2 frames, got {len(frames)}")
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise WireError(f"message: expected a header of at most {MAX_HEADER_BYTES} bytes, got {len(frames[0])}")
    try:
        parts = msgpack.unpackb(frames[0], use_list=False)
    except Exception as error:  # msgpack raises several unrelated types, ValueError among them
        raise WireError(f"message: not msgpack ({type(error).__name__})") from error
    if not isinstance(parts, tuple) or len(parts) != 4 or parts[0] != MAGIC or not _fits(parts[1], "int"):
        raise WireError("message: not one of rtevo's")
    if parts[1] != PROTOCOL:
        raise VersionError(parts[1])
    message = _build(parts[2], parts[3])
    _check_pixels(message, frames)
    return message, memoryview(frames[1]).toreadonly() if len(frames) == 2 else None


def _build(name: object, fields: object) -> Message:
    """Make a message of its name and fields."""
    kind = _MESSAGES.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(fields, dict):
        raise WireError(f"message: no message is called {name!r:.40}")
    expected = {field.name for field in dataclasses.fields(kind)}
    if set(fields) != expected:
        raise WireError(f"{name}: expected the fields {sorted(expected)}, got {sorted(map(str, fields))!s:.200}")
    if kind is Welcome:
        settings = fields["settings"]
        if not isinstance(settings, dict):
            raise WireError("Welcome settings: expected a table")
        try:
            fields["settings"] = PresentationSettings(**settings)
        except TypeError as error:
            raise WireError(f"Welcome settings: {error}") from error
    message: Message = kind(**fields)
    mistakes = _type_mistakes(message)
    if mistakes:
        raise WireError(mistakes)
    return message


def _check_pixels(message: Message, frames: Any) -> None:
    """Raise where the second frame is not what the message announces."""
    name, found = type(message).__name__, len(frames[1]) if len(frames) == 2 else None
    expects = isinstance(message, Image) or (isinstance(message, Shown) and message.kind == "image")
    if not expects:
        if found is not None:
            raise WireError(f"{name}: expected no pixels, got {found} bytes")
        return
    assert isinstance(message, (Image, Shown))
    size = message.height * message.width * 3
    if not (1 <= message.height <= MAX_SIDE and 1 <= message.width <= MAX_SIDE and size <= MAX_PIXEL_BYTES):
        raise WireError(f"{name}: expected 1 to {MAX_SIDE} pixels a side, got {message.height} x {message.width}")
    if found != size:
        raise WireError(f"{name}: expected {message.height} x {message.width} x 3 = {size} bytes of pixels, got {found}")


class Outbox:
    """Numbered messages of one sender, kept until they are acknowledged.

    Parameters
    ----------
    resend_after_ns : int
        Without any acknowledgement for so long (then twice, four times, ... as long), everything unacknowledged is sent again.
    """

    def __init__(self, resend_after_ns: int = 1_000_000_000) -> None:
        self._kept: deque[tuple[int, Numbered, list[bytes]]] = deque()
        self._first_wait_ns = self._wait_ns = resend_after_ns
        self._progress_ns: int | None = None
        self._replayed_from = -1
        self.last = 0  # highest number given out
        self.acknowledged = 0  # highest number acknowledged

    def add(self, message: NumberedT, pixels: Any = None) -> list[bytes]:
        """Number a message and keep it; gives the frames to send."""
        numbered = dataclasses.replace(message, sequence=self.last + 1)
        frames = encode(numbered, pixels)
        self.last += 1
        self._kept.append((self.last, numbered, frames))
        return frames

    def acknowledge(self, received: int) -> list[Numbered]:
        """Drop everything up to number `received`; gives what was dropped, oldest first."""
        gone: list[Numbered] = []
        while self._kept and self._kept[0][0] <= received:
            gone.append(self._kept.popleft()[1])
        if gone:
            self.acknowledged = min(received, self.last)
            self._wait_ns, self._progress_ns = self._first_wait_ns, None
        return gone

    def waiting(self) -> list[Numbered]:
        """Messages that are not acknowledged yet, oldest first."""
        return [message for _, message, _ in self._kept]

    def replay(self) -> list[list[bytes]]:
        """Frames of everything unacknowledged, oldest first."""
        self._progress_ns = None
        return [frames for _, _, frames in self._kept]

    def replay_missing(self) -> list[list[bytes]]:
        """As `replay`, but once only for one gap: the receiver reports it with every message that follows it."""
        if self._replayed_from == self.acknowledged:
            return []
        self._replayed_from = self.acknowledged
        return self.replay()

    def overdue(self, now_ns: int) -> list[list[bytes]]:
        """Frames to send again because nothing has been acknowledged for too long."""
        if not self._kept:
            return []
        if self._progress_ns is None:
            self._progress_ns = now_ns
        if now_ns - self._progress_ns < self._wait_ns:
            return []
        self._wait_ns = min(2 * self._wait_ns, 30 * self._first_wait_ns)
        frames = self.replay()
        self._progress_ns = now_ns
        return frames


class Inbox:
    """Takes numbered messages of one sender once and in order."""

    def __init__(self) -> None:
        self.received = 0  # highest number taken
        self.missing = False  # the last one looked at was not the next

    def take(self, message: Numbered) -> bool:
        """Whether this message is the next one (True), or a repetition or out of order (False: leave it)."""
        fresh = message.sequence == self.received + 1
        self.missing = message.sequence > self.received + 1
        if fresh:
            self.received += 1
        return fresh


@dataclass(frozen=True)
class KeyFile:
    """CURVE keys of one computer, Z85 text of 40 characters each.

    `role`: "support" or "presenter"; `server`: public key of the support computer (in a presenter's file); `clients`: name and public
    key of each presenter that is admitted (in the support computer's file).
    """

    role: str
    public: str
    secret: str
    server: str = ""
    clients: tuple[tuple[str, str], ...] = ()

    def write(self, path: Path) -> None:
        """Write the file, readable by its owner alone."""
        path.touch(mode=0o600)
        path.chmod(0o600)
        content = {"rtevo-keys": 1, "role": self.role, "public": self.public, "secret": self.secret}
        extra = {"server": self.server} if self.role == "presenter" else {"clients": dict(self.clients)}
        path.write_text(json.dumps({**content, **extra}, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path, role: str) -> KeyFile:
        """Read a file that `python -m rtevo.bridge keys` wrote.

        Raises
        ------
        WireError
            Where the file is not there, is not a key file, or belongs to the other computer.
        """
        try:
            content = json.loads(Path(path).read_text())
            clients = tuple((str(name), str(key)) for name, key in content.get("clients", {}).items())
            keys = cls(content["role"], content["public"], content["secret"], content.get("server", ""), clients)
        except OSError as error:
            raise WireError(f"{path}: expected a key file, got {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WireError(f"{path}: expected a key file as `python -m rtevo.bridge keys` writes, got {error!r}") from error
        if keys.role != role:
            raise WireError(f"{path}: expected the key file of the {role}, got that of the {keys.role}")
        needed = [keys.public, keys.secret, *(key for _, key in clients), *([keys.server] if role == "presenter" else [])]
        if not all(isinstance(key, str) and len(key) == 40 and key.isascii() for key in needed):
            raise WireError(f"{path}: expected keys of 40 Z85 characters each")
        return keys


def is_loopback(endpoint: str) -> bool:
    """Whether a ZeroMQ endpoint cannot be reached from another computer."""
    if endpoint.startswith(("ipc://", "inproc://")):
        return True
    host = endpoint.removeprefix("tcp://").rsplit(":", 1)[0].strip("[]")
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdigit() and host.count(".") == 3)

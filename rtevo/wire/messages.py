"""The messages, and their encoding as frames."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]

from rtevo.wire.checks import PROTOCOL, VersionError, WireError, fits, type_mistakes
from rtevo.wire.settings import PresentationSettings

MAGIC = "rtevo"
CHECK = "check"  # name of a session, and reason to end it, that only checks the presenter, which then waits on
RESTART = "restart"  # reason to end a session that begins again with another run of the scanner: the presenter waits
NEXT = "next"  # reason to end a run of a visit: the presenter shows the end text and waits for another run
SELF_TEST = "selftest"  # name of a session and of a display, and reason to end, of the presenter's test of the link
MAX_HEADER_BYTES = 64 * 1024
MAX_PIXEL_BYTES = 64 * 1024 * 1024
MAX_SIDE = 8192  # pixels
MAX_TEXT_BYTES = 240  # of an event
FOREVER_NS = 2**63 - 1  # "until something happens"
PASSED = "passed"  # verdict of an image: every filter of the gate passed it
GIVEN = "given"  # verdict of an image: the site's own image, identified by its digest
TAKERS = ("operator", "participant", "stimulus PC")  # who can take an image away


class Kind(IntEnum):
    """Kinds of Event; the numbers of `rtevo.records.EventKind`."""

    TRIGGER = 1
    ONSET = 2
    OFFSET = 3
    RATING = 4
    FIXATION = 5
    END = 6
    NOTE = 7
    PULSE = 8
    PHYSIOLOGY = 9
    PAUSE = 10
    GO_ON = 11
    TAKEN = 18
    REFUSED = 19
    STOP_ASKED = 20
    PRESS = 21


@dataclass(frozen=True)
class Hello:
    """Presenter: first message. `display`: "headless" or "psychopy"; `session`: its session, empty before its first Welcome.

    `received`: highest number taken from the bridge; `acknowledged`: highest number of its own that was acknowledged; `image`: generation
    and candidate of the last image that arrived; `place`: its computer, the name before any "/"; `process`: its number on that computer;
    `ended`: number of an ended presenter there that `Refused` asked for; `trouble`: why it cannot present and leaves.
    """

    software: str
    display: str
    session: str = ""
    received: int = 0
    acknowledged: int = 0
    image: tuple[int, ...] = ()
    place: str = ""
    process: int = 0
    ended: int = 0
    trouble: str = ""


@dataclass(frozen=True)
class Welcome:
    """Bridge: the session. `started`: the trigger has come; `received`: highest number taken; `now_ns`: time in lock-step."""

    session: str
    settings: PresentationSettings
    started: bool = False
    received: int = 0
    now_ns: int = 0


@dataclass(frozen=True)
class Refused:
    """Bridge: refusal. `final`: do not try again; `replaced`: another presenter shows the session now.

    `process`: number of the session's presenter if it is (or was) on the same computer, else 0.
    """

    reason: str
    final: bool = True
    replaced: bool = False
    process: int = 0


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
    """Everything up to number `received` has arrived. `missing`: a later message arrived out of order: send again."""

    received: int
    missing: bool = False


@dataclass(frozen=True)
class Image:
    """Bridge: an image to show after the earlier ones; pixels in the second frame.

    `washout_s`: fixation after it, s; `image_s`: its duration, s; NaN: as in the settings. `verdict`: `PASSED` or `GIVEN`, for the pixels
    whose SHA-256 is `sha256` (hexadecimal): the presenter shows no others.
    """

    generation: int
    candidate: int
    height: int
    width: int
    washout_s: float = math.nan
    image_s: float = math.nan
    verdict: str = ""
    sha256: str = ""
    sequence: int = 0


@dataclass(frozen=True)
class Away:
    """Bridge: take an image away, at the next frame if it is on the screen; it is not shown (again). -1: the image on the screen."""

    generation: int = -1
    candidate: int = -1
    sequence: int = 0


@dataclass(frozen=True)
class Tick:
    """Bridge, in lock-step: the session time is `now_ns`."""

    now_ns: int
    sequence: int = 0


@dataclass(frozen=True)
class Pause:
    """Bridge: finish the current trial, then hold fixation (`on`); or go on."""

    on: bool
    sequence: int = 0


@dataclass(frozen=True)
class End:
    """Bridge: finish the current trial (or, `at_once`, break it off), show the end text, say goodbye."""

    reason: str
    at_once: bool = False
    sequence: int = 0


@dataclass(frozen=True)
class Ready:
    """Presenter: the display is open and shows the waiting text. `refresh_hz`: measured, 0 in lock-step; `warnings`: for the operator."""

    display: str
    refresh_hz: float
    warnings: tuple[str, ...] = ()
    sequence: int = 0


@dataclass(frozen=True)
class Event:
    """Presenter: an event at `t_ns` of its clock (session time in lock-step).

    `kind`: see `Kind`; `generation`, `candidate`: -1 for no image; `value`: the rating (number of its key), NaN: none; `response_time_s`:
    session seconds from the flip that opened the rating window, NaN: none; `error_ns`: bound of the presenter's own error of `t_ns`;
    `guess`: this error is too large to rely on `t_ns`.
    """

    kind: int
    t_ns: int
    generation: int = -1
    candidate: int = -1
    value: float = math.nan
    response_time_s: float = math.nan
    text: str = ""
    error_ns: int = 0
    guess: bool = False
    sequence: int = 0


@dataclass(frozen=True)
class Idle:
    """Presenter, in lock-step: it has taken the bridge's messages up to number `seen`, and has nothing to do before `until_ns`."""

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
    """Participant: the flip at `t_ns` has been seen."""

    t_ns: int


@dataclass(frozen=True)
class Key:
    """Participant: a key goes down. `t_ns`: in lock-step the session time of the press; otherwise 0, when the message arrives."""

    name: str
    t_ns: int = 0


@dataclass(frozen=True)
class Pressed:
    """Presenter to participant: the key has been handled, and the bridge has acknowledged its events."""

    name: str


Numbered = Image | Away | Tick | Pause | End | Ready | Event | Idle
Message = Hello | Welcome | Refused | Ping | Pong | Ack | Shown | Seen | Key | Pressed | Numbered
NumberedT = TypeVar("NumberedT", Image, Away, Tick, Pause, End, Ready, Event, Idle)
MESSAGES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (Hello, Welcome, Refused, Ping, Pong, Ack, Image, Away, Tick, Pause, End, Ready, Event, Idle, Shown, Seen, Key, Pressed)
}


def digest(pixels: Any) -> str:
    """Return the SHA-256 of pixels, hexadecimal.

    Parameters
    ----------
    pixels : buffer, uint8 (height, width, 3)
        C-contiguous.
    """
    return hashlib.sha256(memoryview(pixels).cast("B")).hexdigest()


def encode(message: Message, pixels: Any = None) -> list[bytes]:
    """Return the frames of a message.

    Parameters
    ----------
    message : Message
        One of the message types of this module.
    pixels : buffer, uint8 (height, width, 3), optional
        C-contiguous; with Image and with Shown of an image. The pixels are copied.

    Returns
    -------
    list of bytes
        One frame, or two with pixels.

    Raises
    ------
    WireError
        A field is of the wrong type, or the pixels do not fit the message.
    """
    mistakes = type_mistakes(message)
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
    """Read a message from its frames, with all checks.

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
    except Exception as error:  # msgpack raises several unrelated types, also ValueError
        raise WireError(f"message: not msgpack ({type(error).__name__})") from error
    if not isinstance(parts, tuple) or len(parts) != 4 or parts[0] != MAGIC or not fits(parts[1], "int"):
        raise WireError("message: not one of rtevo's")
    if parts[1] != PROTOCOL:
        raise VersionError(parts[1])
    message = _build(parts[2], parts[3])
    _check_pixels(message, frames)
    return message, memoryview(frames[1]).toreadonly() if len(frames) == 2 else None


def _build(name: object, fields: object) -> Message:
    """Return a message from its name and fields."""
    kind = MESSAGES.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(fields, dict):
        raise WireError(f"message: expected the name of a message, got {name!r:.40}")
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
    mistakes = type_mistakes(message)
    if mistakes:
        raise WireError(mistakes)
    return message


def _check_pixels(message: Message, frames: Any) -> None:
    """Raise if the second frame differs from what the message announces."""
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

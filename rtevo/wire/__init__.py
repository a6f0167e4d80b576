"""Versioned messages between the support computer, the stimulus PC and the simulated participant.

Standard library and msgpack only, Python 3.10 or later: the stimulus PC has only what PsychoPy installs.

A message is one ZeroMQ frame, or two if it carries pixels::

    frame 0   msgpack [MAGIC, PROTOCOL, name of the message, {field: value}]     at most MAX_HEADER_BYTES
    frame 1   raw pixels, uint8, height x width x 3, row 0 at the top, RGB       at most MAX_PIXEL_BYTES

Support computer (ROUTER) and presenter (DEALER)::

    presenter                                  bridge
    Hello            ->                                      on every connection, and again after silence, until Welcome
                            <-    Welcome | Refused          settings of the session
                            <-    Ping                       clock samples and sign of life
    Pong             ->
                            <-    Image, Away, Tick, Pause, End   numbered: `sequence` 1, 2, 3, ...
    Event, Idle, Ready ->                                    numbered separately
    Ack              ->     <-    Ack                        everything up to `received` has arrived

A sender keeps numbered messages (`Outbox`) until they are acknowledged, and sends them again after a reconnect; the receiver (`Inbox`)
takes each once and in order. A restarted bridge learns from the presenter's Hello which messages the presenter has received and which it
still has to send; `received` in the bridge's Welcome is the last message that the earlier bridge had handled.

The presenter checks every image itself: it shows only images with a verdict over the SHA-256 of the pixels that arrived.

A bridge has one presenter. The Hello of another is Refused, but not for good, until the first is lost, has ended (reported by its computer
in `ended`), or the operator admits the other; the first is then Refused as `replaced`. A presenter that cannot present gives the reason in
a last Hello.

Simulated participant (ROUTER or PAIR, binds) and headless presenter (DEALER, connects)::

    presenter                                  participant
    Shown + pixels   ->                                      after every flip: what is on the screen from `t_ns` on
                            <-    Seen                       at once, also while the participant itself waits for a Pressed
                            <-    Key
    Pressed          ->                                      what the key caused has been acknowledged by the bridge

In lock-step the presenter waits for Seen before it goes on; at real or scaled speed it does not wait.
"""

from __future__ import annotations

from rtevo.wire.checks import (
    PROTOCOL,
    VersionError,
    WireError,
)
from rtevo.wire.keynames import (
    KEY_NAMES,
    key_mistake,
    plain_key,
)
from rtevo.wire.keys import (
    KeyFile,
    is_loopback,
)
from rtevo.wire.messages import (
    CHECK,
    FOREVER_NS,
    GIVEN,
    MAGIC,
    MAX_HEADER_BYTES,
    MAX_PIXEL_BYTES,
    MAX_SIDE,
    MAX_TEXT_BYTES,
    MESSAGES,
    NEXT,
    PASSED,
    RESTART,
    SELF_TEST,
    TAKERS,
    Ack,
    Away,
    End,
    Event,
    Hello,
    Idle,
    Image,
    Key,
    Kind,
    Message,
    Numbered,
    NumberedT,
    Pause,
    Ping,
    Pong,
    Pressed,
    Ready,
    Refused,
    Seen,
    Shown,
    Tick,
    Welcome,
    decode,
    digest,
    encode,
)
from rtevo.wire.settings import (
    TRIGGER,
    PresentationSettings,
)
from rtevo.wire.stream import (
    Inbox,
    Outbox,
)

__all__ = [
    "CHECK",
    "FOREVER_NS",
    "GIVEN",
    "KEY_NAMES",
    "MAGIC",
    "MAX_HEADER_BYTES",
    "MAX_PIXEL_BYTES",
    "MAX_SIDE",
    "MAX_TEXT_BYTES",
    "MESSAGES",
    "NEXT",
    "PASSED",
    "PROTOCOL",
    "RESTART",
    "SELF_TEST",
    "TAKERS",
    "TRIGGER",
    "Ack",
    "Away",
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
    "NumberedT",
    "Outbox",
    "Pause",
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
    "digest",
    "encode",
    "is_loopback",
    "key_mistake",
    "plain_key",
]

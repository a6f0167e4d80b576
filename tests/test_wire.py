"""Messages: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtevo import records, wire
from rtevo.wire import PresentationSettings, WireError
from rtevo.wire.checks import type_mistakes

EXAMPLES: list[wire.Message] = [
    wire.Away(1, 2),
    wire.Hello("0.1.0", "headless", "s", 3, 2),
    wire.Welcome("s", PresentationSettings(rating_window_s=5), True, 4, 5),
    wire.Refused("no"),
    wire.Ping(1, 2),
    wire.Pong(1, 2, 3, 4),
    wire.Ack(7, True),
    wire.Tick(12),
    wire.Pause(True, 3),
    wire.End("done"),
    wire.Ready("psychopy", 60.0),
    wire.Event(wire.Kind.RATING, 5, 1, 2, 3.0, 0.5, "x"),
    wire.Idle(wire.FOREVER_NS, 3),
    wire.Shown("fixation", 4),
    wire.Seen(4),
    wire.Key("5"),
    wire.Pressed("5"),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_round_trip(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == (message, None)


@pytest.mark.parametrize("message", [wire.Image(1, 2, 4, 5, 0.5, 2.0, wire.PASSED, "0" * 64), wire.Shown("image", 9, 4, 5)])
def test_pixels_round_trip_in_order(message: wire.Message) -> None:
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    back, view = wire.decode(wire.encode(message, pixels))
    assert back == message
    assert view is not None
    assert view.readonly
    np.testing.assert_array_equal(np.frombuffer(view, np.uint8).reshape(4, 5, 3), pixels)


def test_missing_rating_stays_missing() -> None:
    back, _ = wire.decode(wire.encode(wire.Event(wire.Kind.RATING, 5, 1, 2)))
    assert isinstance(back, wire.Event)
    assert math.isnan(back.value)
    assert math.isnan(back.response_time_s)


def test_event_kinds_are_those_of_the_records() -> None:
    the_bridges = records.NOTES - {records.EventKind.NOTE}  # what only the bridge itself says is not on the wire
    assert {k.name: k.value for k in wire.Kind} == {k.name: k.value for k in records.EventKind if k not in the_bridges}


def test_every_message_has_an_example() -> None:
    assert {type(m).__name__ for m in EXAMPLES} | {"Image"} == set(wire.MESSAGES)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_is_a_wire_error(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        wire.decode(frames)


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(EXAMPLES), st.data())
def test_wrong_fields_are_a_wire_error_or_a_valid_message(message: wire.Message, data: st.DataObject) -> None:
    fields = dataclasses.asdict(message)
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(_values)
    frames = [msgpack.packb([wire.MAGIC, wire.PROTOCOL, type(message).__name__, fields])]
    try:
        decoded, _ = wire.decode(frames)
    except WireError:
        return
    assert type_mistakes(decoded) == []


def test_other_version_is_named() -> None:
    frames = [msgpack.packb([wire.MAGIC, wire.PROTOCOL + 1, "SomethingNew", {"a": 1}])]
    with pytest.raises(wire.VersionError, match=f"protocol {wire.PROTOCOL + 1}.*same version of rtevo") as caught:
        wire.decode(frames)
    assert caught.value.found == wire.PROTOCOL + 1


@pytest.mark.parametrize(
    ("message", "pixels"),
    [
        (wire.Image(0, 0, 4, 5), b"x" * 59),
        (wire.Image(0, 0, 4, 5), None),
        (wire.Image(0, 0, 0, 5), b""),
        (wire.Image(0, 0, 1, wire.MAX_SIDE + 1), b"x" * 3 * (wire.MAX_SIDE + 1)),
        (wire.Shown("fixation", 0), b"xxx"),
        (wire.Tick(1), b"xxx"),
        (wire.Tick(2**63), None),
        (wire.Tick(True), None),
        (wire.End("x" * wire.MAX_HEADER_BYTES), None),
    ],
)
def test_limits(message: wire.Message, pixels: bytes | None) -> None:
    with pytest.raises(WireError):
        wire.encode(message, pixels)


def test_settings_report_every_mistake_together() -> None:
    with pytest.raises(WireError) as caught:
        PresentationSettings(image_s=0, washout_s=-1.0, trigger_key="1", background=(0.5, 2.0, 0.0), speed=math.inf)
    assert [line.split(":")[0] for line in caught.value.mistakes] == [
        f"presentation {name}" for name in ("image_s", "washout_s", "trigger_key", "background", "speed")
    ]
    assert "image_s: expected > 0 seconds, got 0" in str(caught.value)


def test_settings_of_the_wrong_type() -> None:
    with pytest.raises(WireError, match="image_s: expected float, got 'three'"):
        PresentationSettings(image_s="three")  # type: ignore[arg-type]


def test_settings_scale_durations() -> None:
    assert PresentationSettings(speed=4).real_ns(1.0) == 250_000_000
    assert PresentationSettings(speed=0).real_ns(1.0) == 1_000_000_000
    assert PresentationSettings(speed=0).lock_step


def due(outbox: wire.Outbox, now_ns: int = 0) -> list[list[bytes]]:
    """Send all that is due."""
    found = []
    while (frames := outbox.due(now_ns)) is not None:
        found.append(frames)
        outbox.sent()
    return found


@given(st.lists(st.sampled_from(["add", "lose", "deliver", "rewind", "send"]), max_size=60), st.integers(1, 400), st.data())
def test_numbered_messages_arrive_once_and_in_order(actions: list[str], window_bytes: int, data: st.DataObject) -> None:
    outbox, inbox = wire.Outbox(window_bytes=window_bytes), wire.Inbox()
    network: list[list[bytes]] = []
    taken: list[int] = []
    sent = 0

    def deliver(frames: list[bytes]) -> None:
        message, _ = wire.decode(frames)
        assert isinstance(message, wire.Tick)
        if inbox.take(message):
            taken.append(message.now_ns)

    for action in actions:
        if action == "add":
            outbox.add(wire.Tick(sent))
            sent += 1
        elif action == "send":
            network.extend(due(outbox))
        elif action == "lose" and network:
            network.pop(data.draw(st.integers(0, len(network) - 1)))
        elif action == "deliver" and network:
            deliver(network.pop(0))
            if data.draw(st.booleans()):
                outbox.acknowledge(inbox.received)
        elif action == "rewind":
            outbox.rewind()
    for frames in network:
        deliver(frames)
    while outbox.waiting():
        outbox.rewind()
        for frames in due(outbox):
            deliver(frames)
        assert outbox.acknowledge(inbox.received)
    assert taken == list(range(sent))
    assert outbox.waiting() == []


def test_overdue_messages_go_out_again_at_growing_intervals() -> None:
    outbox, second = wire.Outbox(), 1_000_000_000
    outbox.add(wire.Tick(1))
    assert [len(due(outbox, round(t * second))) for t in (0, 0.1, 1, 1.2, 2.1, 3.1, 3.3, 5, 7.4)] == [1, 0, 0, 1, 0, 0, 1, 0, 1]
    assert outbox.acknowledge(1) == [wire.Tick(1, sequence=1)]
    assert due(outbox, 1000 * second) == []


def test_a_slow_link_is_given_the_time_that_it_takes() -> None:
    outbox, second = wire.Outbox(), 1_000_000_000
    outbox.add(wire.Image(0, 0, 1000, 500), bytes(1_500_000))
    assert [len(due(outbox, t * second)) for t in (0, 1, 5, 13, 15)] == [1, 0, 0, 0, 1]


def test_no_more_than_a_window_is_under_way() -> None:
    outbox = wire.Outbox(window_bytes=350)
    for k in range(5):
        outbox.add(wire.Image(0, k, 5, 7), bytes(105))
    assert len(due(outbox)) == 1  # header and pixels of two would be more
    outbox.acknowledge(1)
    assert len(due(outbox)) == 1


def test_a_gap_is_replayed_once() -> None:
    outbox, inbox = wire.Outbox(), wire.Inbox()
    outbox.add(wire.Tick(1))
    outbox.add(wire.Tick(2))
    _, second = due(outbox)
    assert not inbox.take(wire.decode(second)[0])  # type: ignore[arg-type]
    assert inbox.missing
    outbox.gap()
    assert len(due(outbox)) == 2
    outbox.gap()
    assert due(outbox) == []


def test_key_files(tmp_path: Path) -> None:
    keys = wire.KeyFile("support", "p" * 40, "s" * 40, clients=(("presenter", "c" * 40),))
    keys.write(tmp_path / "support.json")
    assert wire.KeyFile.read(tmp_path / "support.json", "support") == keys
    assert (tmp_path / "support.json").stat().st_mode & 0o077 == 0
    with pytest.raises(WireError, match="expected the key file of the presenter"):
        wire.KeyFile.read(tmp_path / "support.json", "presenter")
    with pytest.raises(WireError, match="No such file"):
        wire.KeyFile.read(tmp_path / "other.json", "presenter")
    (tmp_path / "bad.json").write_text("[1]")
    (tmp_path / "bad.json").chmod(0o600)
    with pytest.raises(WireError, match="expected a key file as"):
        wire.KeyFile.read(tmp_path / "bad.json", "presenter")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_secret_key_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    wire.KeyFile("support", "p" * 40, "s" * 40).write(tmp_path / "support.json")
    (tmp_path / "support.json").chmod(mode)
    with pytest.raises(WireError, match=rf"other users can read this secret key \(mode 0{mode:o}\)"):
        wire.KeyFile.read(tmp_path / "support.json", "support")


@pytest.mark.parametrize(
    ("endpoint", "loopback"),
    [
        ("tcp://127.0.0.1:5555", True),
        ("tcp://localhost:*", True),
        ("tcp://[::1]:5555", True),
        ("ipc:///tmp/x", True),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://*:5555", False),
        ("tcp://192.168.0.2:5555", False),
        ("tcp://127.0.0.1.example.org:5555", False),
    ],
)
def test_loopback(endpoint: str, loopback: bool) -> None:
    assert wire.is_loopback(endpoint) is loopback


def test_wire_needs_no_more_than_msgpack() -> None:
    script = "import sys, rtevo.wire; print([m for m in ('numpy', 'torch', 'zmq', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]"


# --- names of keys ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [("num_5", "5"), ("T", "t"), ("%", "5"), ("=", "equal"), ("KP_5", "5"), ("Return", "return"), ("5 ", "5"), ("enter", "return")],
)
def test_names_that_no_key_delivers_are_refused_with_the_one_that_is_meant(name: str, meant: str) -> None:
    for settings in ({"trigger_key": name}, {"rating_keys": ("a", name)}):
        with pytest.raises(WireError, match=re.escape(f"got {name!r}, which is no key's name; did you mean {meant!r}?")):
            PresentationSettings(**settings)  # type: ignore[arg-type]
    PresentationSettings(trigger_key=meant, rating_keys=("x", "z"))


def test_a_port_delivers_every_character_and_no_trigger_key() -> None:
    PresentationSettings(trigger="serial:COM3@9600=5", rating_keys=("A", "%"), trigger_key="T")
    with pytest.raises(WireError, match="rating_keys"):
        PresentationSettings(trigger="serial:COM3@9600", rating_keys=("A", "%"))


def test_the_same_key_has_one_name() -> None:
    names = {"num_5": "5", "5": "5", "enter": "return", "grave": "quoteleft", "num_add": "num_add", "f5": "f5"}
    assert {name: wire.plain_key(name) for name in names} == names
    assert all(wire.plain_key(name) == name for name in wire.KEY_NAMES)


@pytest.mark.parametrize("trigger", ["serial:COM3@9600=", "serial:COM3@9600=55", "serial:COM3=0x", "serial:=5", "parallel:0x378@10=5"])
def test_triggers_that_are_none(trigger: str) -> None:
    with pytest.raises(WireError, match="trigger: expected"):
        PresentationSettings(trigger=trigger)

"""Volumes that a script pushes over a socket."""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rtevo.bridge.keys import make_keys
from rtevo.errors import DataError
from rtevo.ingest.push import PushSource
from rtevo.records import VolumeFlag
from rtevo.wire import KeyFile

FakeClock = Any
SHAPE, PATIENCE_S = (4, 3, 2), 3.0
MOVED = np.array([[-3.0, 0, 0, 10], [0, 3, 0.1, -20], [0, 0, 3.5, 45], [0, 0, 0, 1]])
AFFINE = np.array([[-3.0, 0, 0, 10], [0, 3, 0.1, -20], [0, 0, 3.5, 5], [0, 0, 0, 1]])


class Script:
    """The sending side; lets the source work while it waits for the answer."""

    def __init__(self, source: PushSource, kind: int = zmq.REQ, keys: KeyFile | None = None) -> None:
        self.source = source
        self.socket = zmq.Context.instance().socket(kind)
        self.socket.set(zmq.LINGER, 0)
        if keys is not None:
            self.socket.curve_publickey, self.socket.curve_secretkey = keys.public.encode(), keys.secret.encode()
            self.socket.curve_serverkey = keys.server.encode()
        self.socket.connect(source.endpoint)
        self.got: list[Any] = []

    def ask(self, *frames: Any) -> Any:
        self.socket.send_multipart(frames)
        while not self.socket.poll(1):
            self.got += self.source.poll()
        return json.loads(self.socket.recv_multipart()[-1])

    def push(self, index: int, /, **changes: Any) -> Any:
        data = volume(index)
        header = {"index": index, "shape": SHAPE, "dtype": data.dtype.str, "affine": AFFINE.tolist(), "tr_s": 2.0} | changes
        return self.ask(json.dumps(header).encode(), np.asarray(data, order=header.get("order", "C")).tobytes(header.get("order", "C")))


def volume(index: int) -> NDArray[np.int16]:
    return np.random.default_rng(index).integers(0, 4096, SHAPE).astype("<i2")


@pytest.fixture
def source(clock: FakeClock) -> Iterator[PushSource]:
    with PushSource("tcp://127.0.0.1:0", patience_s=PATIENCE_S, clock_ns=clock) as made:
        yield made


@pytest.fixture
def script(source: PushSource) -> Iterator[Script]:
    made = Script(source)
    yield made
    made.socket.close()


@pytest.mark.parametrize("order", ["C", "F"])
def test_volumes_in_order_with_gaps(order: str, script: Script, source: PushSource, clock: FakeClock) -> None:
    for index in (0, 2, 1, 4):
        assert script.push(index, order=order, acquired_s=100 + 2 * index, slice_times_s=[0, 1]) == {"ok": True}
    clock.advance(PATIENCE_S)
    got = script.got + source.poll()
    assert [(v.index, v.flags) for v in got] == [(0, 0), (1, 0), (2, 0), (3, VolumeFlag.MISSING), (4, 0)]
    for v in got:
        if v.data is not None:
            np.testing.assert_array_equal(v.data, volume(v.index))
            assert v.data.dtype == np.float32
            assert v.acquired_s == 2 * v.index
            assert v.slice_times_s.tolist() == [0, 1]
            np.testing.assert_array_equal(v.grid.affine, AFFINE)
    assert source.problems == ["volume 3: never came"]


def test_copies_and_the_end(script: Script, source: PushSource) -> None:
    assert [script.push(index)["ok"] for index in (0, 1, 1)] == [True, True, True]
    assert script.ask(json.dumps({"end": True}).encode()) == {"ok": True}
    assert (source.duplicates, source.ended, source.seen, len(script.got)) == (1, True, 4, 2)
    answer = script.ask(
        json.dumps({"index": 1, "shape": SHAPE, "dtype": "<i2", "affine": AFFINE.tolist(), "tr_s": 2.0}).encode(), volume(7).tobytes()
    )
    assert not answer["ok"]
    assert source.finish() == []


def test_a_dealer_need_not_wait_for_answers(source: PushSource) -> None:
    dealer = Script(source, zmq.DEALER)
    assert dealer.push(0) == {"ok": True}
    dealer.socket.close()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"index": -1}, "index: expected a whole number from 0, got -1"),
        ({"index": "first"}, "index"),
        ({"shape": [4, 3, 3]}, "expected 72 bytes of voxels"),
        ({"shape": [4, 3]}, "Grid shape"),
        ({"dtype": "<c8"}, "integers or real numbers"),
        ({"dtype": "brain"}, "brain"),
        ({"affine": [[0] * 4] * 4}, "invertible"),
        ({"tr_s": 0}, "tr_s: expected > 0 seconds, got 0"),
        ({"shape": [4, 3, 2.0]}, "shape: expected three whole numbers"),
        ({"shape": [4, 6, True]}, "shape: expected three whole numbers"),
        ({"affine": [[True, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, "affine: expected numbers"),
        ({"slice_times_s": [0, 2.5]}, "slice_times_s: expected 0 to tr_s (2.0 s), got 0 to 2.5"),
        ({"slice_times_s": [-0.5, 1]}, "slice_times_s: expected 0 to tr_s"),
        ({"token": 7}, "token: expected text, got 7"),
        ({"slice_times_s": [0]}, "slice_times_s: expected 2 numbers"),
        ({"order": "Z"}, "order: expected C or F"),
        ({"colour": 1}, "colour"),
        ({"series": 3}, "series: expected text"),
    ],
)
def test_what_is_wrong_is_answered_and_named(changes: dict[str, Any], why: str, script: Script, source: PushSource) -> None:
    sent = {name: value for name, value in changes.items() if name != "order"}
    answer = script.push(0, **sent) if sent else script.ask(_with_order("Z"), volume(0).tobytes())
    assert why in answer["error"]
    assert why in source.problems[0]
    assert script.push(0) == {"ok": True}


def _with_order(order: str) -> bytes:
    return json.dumps({"index": 0, "shape": SHAPE, "dtype": "<i2", "affine": AFFINE.tolist(), "order": order}).encode()


def test_another_series_or_geometry_is_refused(script: Script, source: PushSource) -> None:
    script.push(0)
    assert "repetition time" in script.push(1, tr_s=1.0)["error"]
    assert "series" in script.push(1, series="other")["error"]
    assert "its geometry differs from the first volume's" in script.push(1, affine=MOVED.tolist())["error"]
    assert script.push(1) == {"ok": True}  # put right
    assert "its geometry differs from the run's" in script.push(2, affine=MOVED.tolist())["error"]
    assert script.push(2) == {"ok": True}
    assert [v.index for v in script.got] == [0, 1, 2]


@pytest.mark.parametrize("confirm", [False, True])
def test_a_wrong_first_volume_gives_way_to_two_that_agree(confirm: bool, clock: FakeClock) -> None:
    with PushSource("tcp://127.0.0.1:0", patience_s=PATIENCE_S, clock_ns=clock, confirm=confirm) as source:
        script = Script(source)
        assert script.push(0, affine=MOVED.tolist()) == {"ok": True}
        for _ in range(2):  # the same one twice says no more than once
            assert "if the first was wrong" in script.push(1)["error"]
        assert [script.push(index) for index in (2, 3)] == [{"ok": True}] * 2
        got = script.got + source.poll()
        script.socket.close()
    right = [v for v in got if v.data is not None and np.array_equal(v.grid.affine, AFFINE)]
    assert [v.index for v in right] == [1, 2, 3]
    assert [v.index for v in got] == [0, 1, 2, 3]
    assert "pushed volume 1, refused before, is used after all" in source.problems[2]


def test_a_volume_that_is_held_may_be_sent_again_put_right(clock: FakeClock) -> None:
    with PushSource("tcp://127.0.0.1:0", patience_s=PATIENCE_S, clock_ns=clock, confirm=True) as source:
        script = Script(source)
        header = {"index": 0, "shape": SHAPE, "dtype": "<i2", "affine": AFFINE.tolist(), "tr_s": 2.0}
        assert script.ask(json.dumps(header).encode(), volume(9).tobytes()) == {"ok": True}
        assert script.push(0) == {"ok": True}
        assert script.got == []  # the first is passed on once a second agrees
        script.push(1)
        np.testing.assert_array_equal((script.got + source.poll())[0].data, volume(0))
        script.socket.close()


def test_a_first_volume_without_a_number_is_told(script: Script, source: PushSource) -> None:
    header = {"index": 0, "shape": SHAPE, "dtype": "<f4", "affine": AFFINE.tolist(), "tr_s": 2.0}
    answer = script.ask(json.dumps(header).encode(), np.full(SHAPE, np.nan, "<f4").tobytes())
    assert answer == {"ok": True, "warning": "volume 0: none of its voxels is a finite number"}
    assert source.problems == ["pushed volume 0: none of its voxels is a finite number"]


def test_a_run_begins_at_index_0_and_is_of_one_sender(script: Script, source: PushSource) -> None:
    """A sender of yesterday is still alive, and goes on where it is."""
    yesterday = Script(source)
    assert "expected 0 as the first of a run, found 33" in yesterday.push(33)["error"]
    assert [script.push(index)["ok"] for index in range(3)] == [True] * 3
    assert "comes from another connection than the run" in yesterday.push(34)["error"]
    assert "expected it from the sender" in yesterday.ask(json.dumps({"end": True}).encode())["error"]
    again = Script(source)  # the script was restarted
    assert again.push(3) == {"ok": True}
    assert [v.index for v in script.got + again.got + yesterday.got] == [0, 1, 2, 3]
    for each in (yesterday, again):
        each.socket.close()


def test_a_token_says_which_messages_are_of_the_run(source: PushSource) -> None:
    today, yesterday, another = (Script(source) for _ in range(3))
    assert today.push(0, token="a") == {"ok": True}
    for token in ({"token": "b"}, {}):
        assert "token: expected that of the run" in yesterday.push(1, **token)["error"]
    assert another.push(1, token="a") == {"ok": True}
    assert today.push(2, token="a") == {"ok": True}
    for each in (today, yesterday, another):
        each.socket.close()


def test_what_comes_before_the_trigger_is_held_and_judged(clock: FakeClock) -> None:
    trigger: list[int] = []

    def opened() -> int | None:
        return trigger[0] if trigger else None

    with PushSource("tcp://127.0.0.1:0", patience_s=PATIENCE_S, clock_ns=clock, opened=opened) as source:
        yesterday, today = Script(source), Script(source)
        for index in range(3):
            assert "the trigger has not come yet" in yesterday.push(index)["held"]
        assert source.poll() == []
        trigger.append(clock())
        clock.advance(1.1)
        assert today.push(0) == {"ok": True}
        assert "comes from another connection" in yesterday.push(9)["error"]
        got = yesterday.got + today.got
        assert [v.index for v in got] == [0]
        np.testing.assert_array_equal(got[0].data, volume(0))
        assert "3 volumes that '' from 127.0.0.1 pushed came too early for this trigger" in source.problems[0]
        for each in (yesterday, today):
            each.socket.close()


def test_a_volume_that_cannot_have_been_measured_yet_is_refused(clock: FakeClock) -> None:
    with PushSource("tcp://127.0.0.1:0", patience_s=PATIENCE_S, clock_ns=clock, opened=lambda: clock() - 10**10) as source:
        script = Script(source)
        assert script.push(0) == {"ok": True}
        assert "volume 33 cannot have been measured yet" in script.push(33)["error"]
        script.socket.close()


@settings(max_examples=60, deadline=None)
@given(frames=st.lists(st.binary(max_size=40), min_size=1, max_size=4))
def test_any_message_is_answered(frames: list[bytes]) -> None:
    with PushSource("tcp://127.0.0.1:0", patience_s=PATIENCE_S) as source:
        dealer = Script(source, zmq.DEALER)
        assert dealer.ask(*frames)["ok"] is False
        dealer.socket.close()


def test_an_address_that_is_taken(source: PushSource) -> None:
    with pytest.raises(DataError, match="cannot listen there"):
        PushSource(source.endpoint, patience_s=1)


def test_an_allowed_peer_pushes(clock: FakeClock) -> None:
    with PushSource("tcp://127.0.0.1:0", patience_s=PATIENCE_S, peers=["@127.0.0.1"], clock_ns=clock) as source:
        script = Script(source)
        answer = script.push(0)
        script.socket.close()
        assert answer["ok"] is True
        assert source.told == "'', which a script pushes (TR 2 s)"
        assert source.problems == []


def refused_without_being_read(source: PushSource, sender: zmq.Socket[bytes]) -> list[str]:
    """Send 64 MB that nobody may send; returns what the source says once it has refused the connection."""
    sender.set(zmq.LINGER, 0)
    sender.connect(source.endpoint)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    payload = bytes(64 << 20)
    with contextlib.suppress(zmq.Again):  # it may have been refused by now
        sender.send_multipart([b"{}", payload], zmq.NOBLOCK, copy=False)
    while not source.problems:
        assert source.poll() == []
    assert source.seen == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (100 << 10)  # the sender's own 64 MB, once
    sender.close()
    return source.problems


def test_an_address_that_is_not_allowed_is_refused_before_it_is_read(clock: FakeClock) -> None:
    with PushSource("tcp://127.0.0.1:0", patience_s=PATIENCE_S, peers=["@10.0.0.1", "@::1"], clock_ns=clock) as source:
        problems = refused_without_being_read(source, zmq.Context.instance().socket(zmq.DEALER))
        assert problems == ["a connection was refused: 127.0.0.1 is not among the allowed peers"]


def test_where_there_are_keys_only_theirs_come_in(tmp_path: Path, clock: FakeClock) -> None:
    make_keys(tmp_path, ["scanner"])
    own, theirs = KeyFile.read(tmp_path / "support.json", "support"), KeyFile.read(tmp_path / "scanner.json", "presenter")
    with PushSource("tcp://127.0.0.1:0", patience_s=PATIENCE_S, clock_ns=clock, keys=own) as source:
        stranger = zmq.Context.instance().socket(zmq.DEALER)
        stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
        stranger.curve_serverkey = own.public.encode()
        problems = refused_without_being_read(source, stranger)
        assert problems == ["a connection was refused: 127.0.0.1 has no key listed in [acquisition] keys"]
        script = Script(source, keys=theirs)
        assert script.push(0) == {"ok": True}
        script.socket.close()


ODD = {
    "deep": b"[" * 100_000,
    "deep within": b'{"index": 0, "shape": ' + b"[" * 900 + b"]" * 900 + b', "dtype": "<i2", "affine": []}',
    "10^400": b'{"index": 0, "shape": [4, 3, 2], "dtype": "<i2", "affine": [[1' + b"0" * 400 + b"]]}",
    "1e400": b'{"index": 0, "shape": [4, 3, 2], "dtype": "<i2", "affine": [[1e400, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}',
    "a long header": b'{"series": "' + b"x" * (5 << 20) + b'"}',
    "a long name": json.dumps({"index": 0, "shape": SHAPE, "dtype": "<i2", "affine": AFFINE.tolist(), "series": "x" * 60_000}).encode(),
    "an unknown name": json.dumps({"x" * 60_000: 1}).encode(),
    "half a surrogate": b'{"index": "\\udc80", "shape": [4, 3, 2], "dtype": "<i2", "affine": []}',
    **{
        f"dtype {name}": json.dumps({"index": 0, "shape": SHAPE, "dtype": name, "affine": AFFINE.tolist()}).encode()
        for name in ("(2,3", "(2,3)i2", "i2,i2", "O", "V8", "S", "{'a':", "f" * 60_000, ["<i2"], {"names": ["a"]}, None, 2)
    },
}


@pytest.mark.parametrize("header", ODD.values(), ids=[name[:30] for name in ODD])
def test_no_message_ends_the_source_or_is_echoed_at_length(header: bytes, script: Script, source: PushSource) -> None:
    answer = script.ask(header, volume(0).tobytes())
    assert answer["ok"] is False
    assert len(answer["error"]) <= 500
    assert all(len(problem) < 600 and problem.isprintable() for problem in source.problems)
    assert script.push(0) == {"ok": True}

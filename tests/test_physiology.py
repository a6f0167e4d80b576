"""Skin conductance over OSC, measured image by image."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
from pythonosc.osc_message_builder import OscMessageBuilder

from rtevo.bridge import Physiology
from rtevo.bridge.physiology import response
from rtevo.errors import LinkError

SECOND = 1_000_000_000
LIMIT_S = 30.0


def scr(t_s: np.ndarray, onset_s: float, amplitude: float) -> np.ndarray:
    """A skin conductance response: begins 1.5 s after its event, steep rise, slow recovery; its peak is `amplitude`."""
    x = np.clip(t_s - onset_s - 1.5, 0, None)
    shape = np.exp(-x / 4) - np.exp(-x / 0.7)
    grid = np.linspace(0, 20, 2001)
    return amplitude * shape / (np.exp(-grid / 4) - np.exp(-grid / 0.7)).max()


@pytest.mark.parametrize("amplitude", [0.0, 0.05, 0.7])
@pytest.mark.parametrize("drift", [-0.002, 0.0])
def test_the_amplitude_of_a_response_is_found(amplitude: float, drift: float) -> None:
    t = np.arange(0, 20, 0.05)
    level = 5 + drift * t + scr(t, 8.0, amplitude)
    assert response(t, level, 8.0) == pytest.approx(amplitude, abs=0.01)


def test_without_samples_there_is_no_response() -> None:
    t = np.arange(0, 20, 0.05)
    assert math.isnan(response(t[t < 7], t[t < 7], 8.0))
    assert math.isnan(response(t[t > 9], t[t > 9], 8.0))
    assert math.isnan(response(np.zeros(0), np.zeros(0), 8.0))


def message(path: str, *values: object) -> bytes:
    builder = OscMessageBuilder(path)
    for value in values:
        builder.add_arg(value)  # type: ignore[arg-type]
    return bytes(builder.build().dgram)


@pytest.fixture
def clock() -> list[int]:
    return [1000 * SECOND]


@pytest.fixture
def sensor(clock: list[int]) -> Iterator[tuple[Physiology, Callable[[bytes], None]]]:
    made = Physiology("127.0.0.1:0", "/eda", lambda: clock[0])
    host, _, port = made.endpoint.rpartition(":")
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.connect((host, int(port)))

    def send(data: bytes) -> None:
        """Send, and have it read at this moment of the clock."""
        before, unreadable = list(made._samples)[-1:], made.unreadable
        out.send(data)
        deadline = time.monotonic() + LIMIT_S
        while (list(made._samples)[-1:], made.unreadable) == (before, unreadable) and b"/other" not in data:
            assert time.monotonic() < deadline, "nothing came"
            made._read(clock[0] / 1e9)

    yield made, send
    out.close()
    made.close()


def test_each_image_gets_its_response_once_its_window_is_over(sensor: tuple[Physiology, Callable[[bytes], None]], clock: list[int]) -> None:
    made, send = sensor
    zero, amplitudes = clock[0], (0.2, 0.0, 0.5)
    onsets = [zero + round((2 + 12 * k) * SECOND) for k in range(3)]
    waiting = list(enumerate(onsets))
    found: list[tuple[int, int, int, float]] = []
    bundle = OscBundleBuilder(IMMEDIATELY)
    for _ in range(400):
        clock[0] += SECOND // 10
        t = np.array([(clock[0] - zero) / 1e9])
        level = 3 + sum(float(scr(t, (onset - zero) / 1e9, a)[0]) for onset, a in zip(onsets, amplitudes, strict=True))
        builder = OscMessageBuilder("/eda")
        builder.add_arg(level)
        bundle = OscBundleBuilder(IMMEDIATELY)
        bundle.add_content(builder.build())
        send(bytes(bundle.build().dgram) if t[0] > 10 else message("/eda", level))
        send(message("/other", 99.0))
        while waiting and clock[0] >= waiting[0][1]:
            made.onset(0, *waiting.pop(0))
        found += made.poll()
    assert [candidate for _, candidate, _, _ in found] == [0, 1, 2]
    assert [t_ns - onset for (_, _, t_ns, _), onset in zip(found, onsets, strict=True)] == [5 * SECOND] * 3
    np.testing.assert_allclose([value for *_, value in found], amplitudes, atol=0.03)


def test_garbage_is_counted_and_a_silent_sensor_is_no_response(
    sensor: tuple[Physiology, Callable[[bytes], None]], clock: list[int]
) -> None:
    made, send = sensor
    send(b"\x00\x01\x02")
    assert made.unreadable == 1
    made.onset(1, 2, clock[0])
    assert made.poll() == []
    clock[0] += 6 * SECOND
    [(generation, candidate, _, value)] = made.poll()
    assert (generation, candidate) == (1, 2)
    assert math.isnan(value)


def test_an_address_that_is_none() -> None:
    for bind in ("127.0.0.1:port", "nowhere", "192.0.2.1:9000"):
        with pytest.raises(LinkError, match=r"\[bridge\] osc: expected a free ADDRESS:PORT"):
            Physiology(bind, "/eda")

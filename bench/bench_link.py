"""The link to the stimulus PC: from an image in hand to its texture, from a trigger to its event, and how well its clock is known.

Run as a script, ``python bench/bench_link.py [--json FILE] [--images N] [--clock-s S] [--cut-s S ...]``:

- *images* go through the bridge, encrypted, to a presenter in a process of its own, in a PsychoPy window where ``make psychopy`` and a
  display (or Xvfb) are there. *taken* is when the presenter's frame loop has it in its hands, *texture ready* when the graphics card has
  it (glFinish). Peers: the same bytes through a plain ZeroMQ socket, and PNG encoding and decoding alone.
- *triggers* are stamped by the presenter and end when the support computer's loop has the event. Peer: a plain ZeroMQ message.
- *clock*: the presenter's clock is off by a week and 60 ppm, the network between has delays, losses and cuts; errors of mapped times
  against what is true. Peer: the last round-trip alone, without filter or drift.

Every image's checksum comes back and is compared before a time counts. Both processes are on this computer, so that times can be compared.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from numpy.typing import NDArray
from PIL import Image

from presenter.link import Link
from rtevo import wire
from rtevo.bridge import Bridge, PresenterEvent, make_keys
from rtevo.records import EventKind
from rtevo.simulate import FaultyNetwork
from rtevo.wire import PresentationSettings

REPOSITORY = Path(__file__).parents[1]
PSYCHOPY = REPOSITORY / ".venv/psychopy/bin/python"
SIDE, WARM_UP, LIMIT_S = 768, 5, 120.0
DRIFT, AHEAD_NS = 60e-6, 7 * 86400 * 10**9
NETWORKS: dict[str, dict[str, float]] = {
    "loopback": {},
    "2 ms + 5 ms jitter, 1% lost": {"delay_s": 0.002, "jitter_s": 0.005, "loss": 0.01},
    "20 ms + 20 ms jitter, 5% lost": {"delay_s": 0.02, "jitter_s": 0.02, "loss": 0.05},
}


def summary(ns: list[int] | NDArray[np.int64]) -> dict[str, float]:
    """Return p50, p99 and max in ms."""
    p50, p99, top = np.percentile(np.array(ns) / 1e6, [50, 99, 100])
    return {"n": len(ns), "p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(float(top), 3)}


def picture(seed: int) -> NDArray[np.uint8]:
    """Make a picture that compresses as badly as a photograph does."""
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.integers(0, 200, (SIDE // 32, SIDE // 32, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    return smooth + rng.integers(0, 40, (SIDE, SIDE, 3), dtype=np.uint8)


@contextlib.contextmanager
def desktop() -> Iterator[dict[str, str] | None]:
    """Yield a display: the existing one, else Xvfb; None if there is neither, or no PsychoPy."""
    if not PSYCHOPY.exists():
        yield None
    elif os.environ.get("DISPLAY") or sys.platform in ("win32", "darwin"):
        yield dict(os.environ)
    elif shutil.which("Xvfb") is None:
        yield None
    else:
        reader, writer = os.pipe()
        command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1024x768x24", "-nolisten", "tcp"]
        server = subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL)
        os.close(writer)
        with os.fdopen(reader) as said:
            yield {**os.environ, "DISPLAY": ":" + said.readline().strip()}
        server.terminate()
        server.wait()


@contextlib.contextmanager
def peer(what: str, count: int, environment: dict[str, str] | None = None) -> Iterator[Bridge]:
    """A bridge with keys, and the other side in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        [key] = make_keys(Path(folder), ["presenter"])
        with Bridge("tcp://127.0.0.1:0", PresentationSettings(full_screen=False), keys=Path(folder)) as bridge:
            interpreter, display = (str(PSYCHOPY), "screen") if environment else (sys.executable, "none")
            command = [interpreter, str(REPOSITORY / "bench/link_peer.py"), what, bridge.endpoint, str(key), display, str(count)]
            process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            try:
                yield bridge
            finally:
                process.wait(LIMIT_S)


def wait_for(bridge: Bridge, kind: EventKind, generation: int = -1) -> PresenterEvent:
    """Wait for an event."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for event in bridge.poll(0.05):
            if event.kind == kind and event.generation == generation:
                return event
    raise TimeoutError(f"bench_link: the other side has not answered within {LIMIT_S:g} s")


def measure_images(count: int) -> dict[str, Any]:
    """Hand images to the bridge, one after the other."""
    taken, ready = [], []
    rng = np.random.default_rng(0)
    with desktop() as environment, peer("images", count + WARM_UP, environment) as bridge:
        while not bridge.ready:
            bridge.poll(0.05)
        for k in range(count + WARM_UP):
            pixels = picture(k)
            pause_until = time.monotonic() + rng.uniform(0.02, 0.08)
            while time.monotonic() < pause_until:
                bridge.poll(0.005)
            handed_ns = time.monotonic_ns()
            bridge.send_image(0, k, pixels, verdict="given")
            event = wait_for(bridge, EventKind.NOTE, 0)
            taken_ns, checksum = map(int, event.text.split())
            if (event.candidate, checksum) != (k, zlib.crc32(pixels)):
                raise RuntimeError("bench_link: another image came out than went in")
            if k >= WARM_UP:
                taken.append(taken_ns - handed_ns)
                ready.append(event.mono_ns - handed_ns)
        wait_for(bridge, EventKind.END)
    found = {"display": "PsychoPy" if environment else "none", "taken_ms": summary(taken)}
    if environment:
        found["texture_ready_ms"] = summary(ready)
    return {**found, "plain_zeromq_ms": summary(plain(picture(0).tobytes(), count)), "png_ms": summary(png(count))}


def plain(data: bytes, count: int) -> list[int]:
    """Send bytes through a plain socket, over TCP as the bridge does, to a thread that waits for them."""
    context, arrived = zmq.Context(), []
    receiver, sender = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    receiver.connect(f"tcp://127.0.0.1:{sender.bind_to_random_port('tcp://127.0.0.1')}")

    def receive() -> None:
        for _ in range(count + WARM_UP):
            receiver.recv()
            arrived.append(time.monotonic_ns())

    thread = threading.Thread(target=receive)
    thread.start()
    sent = []
    for k in range(count + WARM_UP):
        sent.append(time.monotonic_ns())
        sender.send(data)
        while len(arrived) <= k:
            time.sleep(0.0005)
    thread.join()
    for socket in (receiver, sender):
        socket.close()
    context.term()
    return [b - a for a, b in zip(sent, arrived, strict=True)][WARM_UP:]


def png(count: int) -> list[int]:
    """Encode (fastest level) and decode a picture."""
    found = []
    for k in range(min(count, 20)):
        pixels, began = picture(k), time.monotonic_ns()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png", compress_level=1)
        np.asarray(Image.open(file))
        found.append(time.monotonic_ns() - began)
    return found


def measure_triggers(count: int) -> dict[str, Any]:
    """Take pulses that the other side stamps."""
    latencies: list[int] = []
    with peer("triggers", count) as bridge:
        ended = False
        while not ended:
            events = bridge.poll(0.005)
            now = time.monotonic_ns()
            latencies += [now - event.mono_ns for event in events if event.kind == EventKind.PULSE]
            ended = any(event.kind == EventKind.END for event in events)
    if len(latencies) != count:
        raise RuntimeError(f"bench_link: {count} triggers went in, {len(latencies)} came out")
    return {"trigger_to_event_ms": summary(latencies[WARM_UP:]), "plain_zeromq_ms": summary(plain(b"x" * 100, count))}


def measure_clock(network: dict[str, float], seconds: float, cuts_s: tuple[float, ...] = ()) -> dict[str, Any]:
    """Send events through a bad network from a clock that is off and drifts; compare their mapped times with what is true."""
    zero, rng = time.monotonic_ns(), np.random.default_rng(1)

    def there() -> int:
        now = time.monotonic_ns()
        return now + AHEAD_NS + round((now - zero) * DRIFT)

    def here(there_ns: int) -> int:
        return zero + round((there_ns - zero - AHEAD_NS) / (1 + DRIFT))

    sent: list[int] = []
    errors, bounds, naive_errors = [], [], []
    with (
        Bridge("tcp://127.0.0.1:0", PresentationSettings(), lost_s=300) as bridge,
        FaultyNetwork(bridge.endpoint, **network) as between,  # type: ignore[arg-type]
        Link(between.endpoint, clock_ns=there) as link,
    ):
        while len(bridge.clock) < 8:
            bridge.poll(0.01)
        plan = sorted((seconds * (k + 1) / (len(cuts_s) + 1), length) for k, length in enumerate(cuts_s))
        began, next_s, back_s = time.monotonic(), 0.0, 0.0
        while time.monotonic() - began < seconds + sum(cuts_s) or not link.acknowledged(link.last):
            now_s = time.monotonic() - began
            if now_s > next_s and now_s < seconds + sum(cuts_s):
                sent.append(there())
                link.send(wire.Event(int(EventKind.FIXATION), sent[-1], 0, len(sent) - 1))
                next_s = now_s + rng.exponential(0.05)
            if plan and now_s > plan[0][0]:
                between.pull()
                back_s = now_s + plan.pop(0)[1]
            if back_s and now_s > back_s:
                between.plug()
                back_s = 0.0
            for event in bridge.poll(0.005):
                if event.kind == EventKind.FIXATION:
                    if event.candidate != len(errors):
                        raise RuntimeError(f"bench_link: event {event.candidate} came where {len(errors)} was due")
                    true_ns = here(sent[event.candidate])
                    errors.append(abs(event.mono_ns - true_ns))
                    bounds.append(event.error_ns)
                    naive_errors.append(abs(sent[event.candidate] + bridge.clock.newest_ns - true_ns))
        drift = bridge.clock.drift_ppm
    if len(errors) != len(sent):
        raise RuntimeError(f"bench_link: {len(sent)} events went in, {len(errors)} came out")
    held = float(np.mean(np.array(errors) <= np.array(bounds)))
    return {
        "cuts_s": list(cuts_s),
        "error_ms": summary(errors),
        "bound_ms": summary(bounds),
        "within_bound": held,
        "drift_ppm": round(drift, 2),
        "last_round_trip_error_ms": summary(naive_errors),
    }


def hardware() -> dict[str, Any]:
    """Return the description of the machine."""
    info = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.processor())
    versions = {"python": platform.python_version(), "pyzmq": zmq.__version__, "libzmq": zmq.zmq_version()}
    return {"processor": model, "cores": os.cpu_count(), "load": os.getloadavg(), **versions}


def table(results: dict[str, Any]) -> Iterator[str]:
    """Yield the results as lines of text."""

    def row(label: str, found: dict[str, float], extra: str = "") -> str:
        return f"{label:<52}{found['n']:>6}{found['p50']:>10.3f}{found['p99']:>10.3f}{found['max']:>10.3f}{extra}"

    yield f"{'ms':<52}{'n':>6}{'p50':>10}{'p99':>10}{'max':>10}"
    images, triggers = results["images"], results["triggers"]
    base = images["plain_zeromq_ms"]["p50"]
    ratio = images["taken_ms"]["p50"] / base
    yield row(f"image handed to bridge -> taken ({images['display']})", images["taken_ms"], f"  {ratio:.1f} x plain")
    if "texture_ready_ms" in images:
        yield row("image handed to bridge -> texture ready", images["texture_ready_ms"])
    yield row("  the same bytes, plain ZeroMQ", images["plain_zeromq_ms"])
    yield row("  PNG encoding and decoding alone", images["png_ms"])
    ratio = triggers["trigger_to_event_ms"]["p50"] / triggers["plain_zeromq_ms"]["p50"]
    yield row("trigger -> event on the support computer", triggers["trigger_to_event_ms"], f"  {ratio:.1f} x plain")
    yield row("  a plain ZeroMQ message", triggers["plain_zeromq_ms"])
    for name, found in results["clock"].items():
        known = f"  within bound {found['within_bound']:.2%}, drift {found['drift_ppm']:+.1f} ppm"
        yield row(f"clock error, {name}", found["error_ms"], known)
        yield row("  its bound", found["bound_ms"])
        yield row("  the last round-trip alone", found["last_round_trip_error_ms"])


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--triggers", type=int, default=300)
    parser.add_argument("--clock-s", type=float, default=20.0, help="for each network")
    parser.add_argument("--cut-s", type=float, nargs="*", default=[], help="also cut the first bad network for so long, each in turn")
    options = parser.parse_args()
    machine = hardware()
    results: dict[str, Any] = {"images": measure_images(options.images), "triggers": measure_triggers(options.triggers), "clock": {}}
    for name, network in NETWORKS.items():
        results["clock"][name] = measure_clock(network, options.clock_s)
    if options.cut_s:
        name, network = list(NETWORKS.items())[1]
        results["clock"][f"{name}, cuts"] = measure_clock(network, options.clock_s, tuple(options.cut_s))
    print(f"{machine['processor']}, {machine['cores']} cores, load {machine['load'][0]:.1f}, Python {machine['python']}")
    print("\n".join(table(results)))
    if options.json:
        options.json.write_text(json.dumps({"hardware": machine, **results}, indent=1))


# -- pytest-benchmark ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encrypted", [True, False])
def test_image_through_the_link(benchmark: Any, encrypted: bool, tmp_path: Path) -> None:
    """From the bridge to the presenter's hands, in one process."""
    keys = tmp_path if encrypted else None
    key = wire.KeyFile.read(make_keys(tmp_path, ["presenter"])[0], "presenter") if encrypted else None
    pixels = picture(0)
    with Bridge("tcp://127.0.0.1:0", PresentationSettings(), keys=keys) as bridge, Link(bridge.endpoint, key) as link:
        while not bridge.connected:
            bridge.poll(0.01)

        def once() -> None:
            bridge.send_image(0, 0, pixels, verdict="given")
            while bridge.in_flight:
                bridge.poll(0.01)
            [(_, view)] = link.take()
            assert view is not None
            assert len(view) == pixels.nbytes

        benchmark(once)


if __name__ == "__main__":
    main()

"""The stimulus PC's side of bench_link.py: shows images or sends triggers, with whatever interpreter has PsychoPy.

Usage: ``PYTHON link_peer.py images|triggers ENDPOINT KEY_FILE screen|none COUNT``.
"""

from __future__ import annotations

import random
import sys
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from presenter.display import Picture
from presenter.link import Link
from rtevo import wire
from rtevo.wire import Event, Image, Kind


def images(link: Link, display: str, count: int) -> None:
    """Take images as a session does, frame by frame, and make each ready; tell when it was taken and when its texture was there."""
    screen = None
    if display == "screen":
        from presenter.screen import Screen

        screen = Screen(link.welcome().settings)
    link.send(wire.Ready(display, 0.0))
    for _ in range(count):
        while not (taken := link.take()):
            if screen is None:
                link.wake.poll(1000)
            else:
                screen.wait(screen.now_ns() + 1_000_000_000)
        [(image, pixels)] = taken
        assert isinstance(image, Image)
        assert pixels is not None
        taken_ns = time.perf_counter_ns()
        if screen is not None:
            from pyglet import gl

            screen.prepare(Picture(image.generation, image.candidate, image.height, image.width, pixels))
            gl.glFinish()
        ready_ns = time.perf_counter_ns()
        text = f"{taken_ns} {zlib.crc32(pixels)}"
        link.send(Event(int(Kind.NOTE), ready_ns, image.generation, image.candidate, text=text))
    if screen is not None:
        screen.close()


def triggers(link: Link, count: int) -> None:
    """Send pulses at irregular times."""
    link.welcome()
    rng = random.Random(1)
    for k in range(count):
        time.sleep(rng.uniform(0.005, 0.02))
        link.send(Event(int(Kind.PULSE), time.perf_counter_ns(), 0, k))
    link.flush(10)


def main() -> None:
    """Do what the command line says."""
    what, endpoint, key, display, count = sys.argv[1:]
    with Link(endpoint, wire.KeyFile.read(Path(key), "presenter"), display) as link:
        if what == "images":
            images(link, display, int(count))
        else:
            triggers(link, int(count))
        link.send(Event(int(Kind.END), time.perf_counter_ns()))
        link.flush(10)


if __name__ == "__main__":
    main()

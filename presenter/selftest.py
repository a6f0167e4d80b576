"""Timing self-test: ``python -m presenter --selftest``. Measures screen, textures, trigger and network; writes a report.

With ``--connect`` the support computer must run ``python -m rtevo.bridge test``: it sends the [presentation] settings, and answers.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Any

from presenter.display import Display, Picture, Press, Scene
from presenter.headless import open_headless
from presenter.link import Link
from presenter.run import load_screen
from presenter.session import ESCAPE
from presenter.triggers import open_port
from rtevo import wire
from rtevo.wire import SELF_TEST, Event, Kind, PresentationSettings

__all__ = ["self_test"]

FRAMES = 600
UPLOADS, SIDE = 40, 768  # pictures, pixels
EVENTS = 200
PULSES, PULSES_S = 10, 20.0  # number needed; longest wait
KEYS_S = 30.0  # longest wait for a key
SURE_MS = 1.0  # shortest pulse of scanners
PATIENCE_S = 10.0
IRREGULAR = 0.01  # share of frames that may be missed

Report = dict[str, Any]


def _distribution(times_ns: list[int]) -> Report:
    """Summarise durations, ms."""
    ordered = sorted(t / 1e6 for t in times_ns)
    if not ordered:
        return {"n": 0}
    p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"n": len(ordered), "p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "max_ms": round(ordered[-1], 3)}


def _frames(display: Display, frames: int) -> Report:
    """Flip repeatedly, and return refresh rate, jitter and missed frames."""
    before, flips = display.dropped, [display.show(Scene("fixation"), display.now_ns())]
    for _ in range(frames):
        flips.append(display.show(Scene("fixation"), flips[-1] + display.frame_ns))
    gaps = [b - a for a, b in pairwise(flips)]
    whole = [gap for gap in gaps if gap < 1.5 * display.frame_ns] or gaps
    return {
        "refresh_hz": round(1e9 / statistics.fmean(whole), 3),
        "jitter_sd_ms": round(statistics.pstdev(whole) / 1e6, 4),
        "dropped": display.dropped - before,
        **_distribution(gaps),
    }


def _uploads(display: Display, uploads: int) -> Report:
    """Time the preparation of pictures, each shown afterwards as in a session."""
    taken = []
    for k in range(uploads):
        picture = Picture(0, k, SIDE, SIDE, memoryview(os.urandom(SIDE * SIDE * 3)))
        began = time.perf_counter_ns()
        display.prepare(picture)
        taken.append(time.perf_counter_ns() - began)
        display.show(Scene("image", picture=picture), display.now_ns())
    return {"pixels": f"{SIDE} x {SIDE}", **_distribution(taken)}


def _keys(display: Any, settings: PresentationSettings, say: Callable[[str], None], wait_s: float) -> Report:
    """Let a person press keys, and report each: name, keyboard, and whether the window has the keys."""
    wanted = [*([settings.trigger_key] if settings.trigger == "keyboard" else []), *settings.rating_keys]
    backend = display.keys.backend
    say(f"keys ({backend}): press {', '.join(wanted)} and all other keys in use; Escape (or {wait_s:g} s without a key) continues")
    display.say("Test of the keys.\n\nEscape continues.")
    seen: list[str] = []
    elsewhere, until = 0, display.now_ns() + round(wait_s * 1e9)
    while not display.due(until):
        presses = display.wait(until)
        for text in display.told():
            say(f"keys: {text}")
        for press in presses:
            until = display.now_ns() + round(wait_s * 1e9)
            part = " (trigger)" if press.key == settings.trigger_key else " (rating)" if press.key in settings.rating_keys else ""
            where = "typed into another window: it does not count" if press.elsewhere else "window in front"
            say(f"key {press.key!r}{part}: {backend}, time known to {press.error_ns / 1e6:.1f} ms, {where}")
            elsewhere += press.elsewhere
            seen.append(press.key)
        if any(press.key == ESCAPE and not press.elsewhere for press in presses):
            break
    tried = any(key != ESCAPE for key in seen)
    return {
        "backend": backend,
        "exact": display.keys.exact,
        "pressed": list(dict.fromkeys(seen)),
        "missing": [key for key in dict.fromkeys(wanted) if key not in seen] if tried else [],
        "elsewhere": elsewhere,
    }


def _pulses(display: Display, settings: PresentationSettings, say: Callable[[str], None], wait_s: float) -> Report:
    """Measure the times of some pulses."""
    say(f"trigger ({settings.trigger}): let the scanner or a colleague send some pulses; Escape continues ({wait_s:g} s at most)")
    port = open_port(settings.trigger)
    times: list[int] = []
    with ExitStack() as stack:
        if port is not None:
            stack.enter_context(port)
        display.show(Scene("text", settings.wait_text), display.now_ns())
        until = display.now_ns() + round(wait_s * 1e9)
        presses: list[Press] = []
        while len(times) < PULSES and not display.due(until) and not any(press.key == ESCAPE for press in presses):
            presses = display.wait(until)
            times += [press.t_ns for press in presses if press.key == settings.trigger_key] if port is None else port.take()
            for text in [] if port is None else port.told():
                say(f"trigger: {text}")
        shortest_ns = 0 if port is None else port.shortest_ns
    times = times[:PULSES]  # two may have come together
    gaps = [b - a for a, b in pairwise(times)]
    report: Report = {"source": settings.trigger, "pulses": len(times)}
    if port is not None and shortest_ns:
        report["shortest_ms"] = round(shortest_ns / 1e6, 3)
        say(f"trigger: pulses that last longer than {shortest_ns / 1e6:.2f} ms are certain to be seen here")
    if len(gaps) > 1:
        report.update(interval_s=round(statistics.fmean(gaps) / 1e9, 4), interval_sd_ms=round(statistics.pstdev(gaps) / 1e6, 3))
    return report


def _round_trips(link: Link, events: int) -> Report:
    """Report triggers, as a session does, until each is acknowledged; return the round-trip times."""
    taken: list[int] = []
    for _ in range(events):
        began = time.perf_counter_ns()
        link.send(Event(int(Kind.PULSE), began))
        if not link.flush(PATIENCE_S):
            return {"failed": f"an event was not acknowledged within {PATIENCE_S:g} s", **_distribution(taken)}
        taken.append(time.perf_counter_ns() - began)
    return _distribution(taken)


def _verdicts(report: Report) -> list[str]:
    """Return the problems to correct before a participant comes."""
    found = []
    frames, uploads = report.get("frames", {}), report.get("upload", {})
    if "paced" in report["display"]:
        found.append("flips do not wait for the screen: turn on vertical synchronisation (graphics driver), and use the full screen")
    if frames.get("dropped", 0) > IRREGULAR * frames.get("n", 1):
        found.append(f"{frames['dropped']} of {frames['n']} frames were missed: close other programs, turn off the desktop's compositor")
    if uploads and uploads["p99_ms"] > 100:
        found.append(f"an upload takes up to {uploads['p99_ms']:.0f} ms: if this is software rendering, install the graphics driver")
    if report.get("trigger", {}).get("pulses") == 0:
        found.append(f"no pulse arrived from {report['trigger']['source']}")
    if report.get("trigger", {}).get("shortest_ms", 0) > SURE_MS:
        found.append(
            f"pulses shorter than {report['trigger']['shortest_ms']:.1f} ms may be missed at the parallel port: close other programs, "
            "lengthen the pulses, or use a serial port"
        )
    keys = report.get("keys", {})
    if keys and not keys["exact"]:
        found.append("Psychtoolbox is missing, so key times are known to one frame only: pip install psychtoolbox")
    if keys.get("missing"):
        found.append(f"keys of the session that did not arrive: {', '.join(keys['missing'])} (compare the names with the list above)")
    if keys.get("elsewhere"):
        found.append("keys were typed into another window, and would not count in a session: keep the presenter's window in front")
    if "failed" in report.get("round_trip", {}):
        found.append(f"link: {report['round_trip']['failed']}")
    return found


def self_test(
    connect: str | None,
    *,
    key: Path | None = None,
    headless: bool = False,
    window: bool = False,
    report_file: Path | None = None,
    frames: int = FRAMES,
    pulses_s: float = PULSES_S,
    keys_s: float = KEYS_S,
    connect_s: float = 30.0,
    say: Callable[[str], None] = print,
) -> Report:
    """Measure, print and return the report.

    Parameters
    ----------
    connect : str, optional
        Endpoint of ``python -m rtevo.bridge test``; None: this computer alone.
    key, headless, window
        As for a session.
    report_file : Path, optional
        Also write the report to this file, as JSON.
    frames : int
        Frames measured.
    pulses_s : float
        Longest wait for pulses, s; 0: none.
    keys_s : float
        Longest wait for a key, s; 0: none.
    connect_s : float
        Longest wait for the support computer, s.
    say : callable
        Called with each line of progress.

    Raises
    ------
    presenter.link.LinkLost, presenter.display.DisplayError, rtevo.wire.WireError
        With a message for the person at this computer.
    """
    with ExitStack() as stack:
        keys = wire.KeyFile.read(key, "presenter") if key is not None else None
        settings, link = PresentationSettings(), None
        if connect is not None:
            say(f"waiting for the support computer at {connect}")
            link = stack.enter_context(Link(connect, keys, SELF_TEST, connect_s=connect_s))
            settings = link.welcome().settings
        display = _open(settings, link, headless, window)
        stack.enter_context(closing(display))
        report: Report = {"computer": platform.platform(), "python": platform.python_version(), "display": display.name}
        say(f"screen: {frames} frames")
        report["frames"] = _frames(display, frames)
        if not headless:
            say(f"textures: {UPLOADS} pictures of {SIDE} x {SIDE}")
            report["upload"] = _uploads(display, UPLOADS)
        if keys_s > 0 and not headless:
            report["keys"] = _keys(display, settings, say, keys_s)
        if pulses_s > 0:
            report["trigger"] = _pulses(display, settings, say, pulses_s)
        if link is not None:
            say(f"link: {EVENTS} events there and back")
            report["round_trip"] = _round_trips(link, EVENTS)
            link.send(Event(int(Kind.END), time.perf_counter_ns(), text=SELF_TEST))
            link.flush(PATIENCE_S)
    report["to_do"] = _verdicts(report)
    _tell(report, say)
    if report_file is not None:
        report_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _open(settings: PresentationSettings, link: Link | None, headless: bool, window: bool) -> Display:
    if headless:
        return open_headless(link, settings, None, 0)
    return load_screen()(settings, window=window)


def _tell(report: Report, say: Callable[[str], None]) -> None:
    """Print a report."""
    for part, found in report.items():
        if isinstance(found, dict):
            say(f"{part:12} " + ", ".join(f"{name} {value}" for name, value in found.items()))
        elif isinstance(found, str):
            say(f"{part:12} {found}")
    for line in report["to_do"] or ["no problems found"]:
        say(f"{'->':12} {line}")

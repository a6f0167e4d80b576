"""Checks of the stimulus PC: its presenter, its screen, its clock; and of skin conductance."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from rtevo import wire
from rtevo.bridge import Bridge, Physiology, PresenterEvent
from rtevo.config import presentation_settings, presenter_is_outside
from rtevo.gate import marked_picture
from rtevo.preflight.findings import Finding, Known
from rtevo.records import NOTES, EventKind

__all__ = ["conductance", "presenter"]

OWN_S = 60.0  # longest wait for a rehearsal's own presenter
LEAVE_S = 10.0
LEAST_HZ = 50.0
KNOWN_MS = 4.0  # clock: half a frame of 120 Hz
SAMPLES_S = 3.0
KEPT = NOTES | {EventKind.END, EventKind.REFUSED, EventKind.ONSET}


def presenter(known: Known) -> Iterator[Finding]:
    """Wait for the presenter, as a session does, read its screen's figures, and let it wait for the session again."""
    config, outside = known.config, presenter_is_outside(known.config)
    settings = replace(
        presentation_settings(config),
        speed=1.0,
        wait_text="The support computer is checking this screen.",
        end_text="All is well here. Waiting for the session.",
    )
    keys = Path(config.bridge.keys) if outside and config.bridge.keys else None
    wait_s = known.wait_s if outside else OWN_S
    notes: list[PresenterEvent] = []
    with (
        Bridge(config.bridge.bind if outside else "tcp://127.0.0.1:0", settings, keys=keys, session=wire.CHECK) as link,
        ExitStack() as stack,
    ):
        if outside:
            known.tell(f"waiting up to {wait_s:g} s for the presenter at {link.endpoint} (python -m presenter --connect ...)")
        else:
            stack.enter_context(_own(link.endpoint))
        _poll(link, wait_s, notes, lambda: link.ready or bool(link.trouble))
        if link.trouble:
            yield Finding(
                "presenter", "fail", f"it cannot present: {link.trouble}", "correct that on the stimulus PC, and restart the presenter"
            )
            return
        if not link.ready:
            yield _nobody(link, wait_s, notes)
            return
        _poll(link, 1.0, notes, lambda: len(link.clock) >= 8)
        offset_ns, bound_ns = link.clock.now() if len(link.clock) else (0, -1)
        refused = _refuses(link, notes)
        link.end(wire.CHECK)
        _poll(link, LEAVE_S, notes, lambda: any(note.kind == EventKind.END for note in notes))
    yield _screen(link, outside)
    yield refused
    for warning in link.warnings:
        yield Finding("presenter's computer", "warn", warning, "correct that on the stimulus PC; python -m presenter --selftest shows more")
    if others := [note.text for note in notes if note.kind == EventKind.WAITS]:
        yield Finding("presenters", "warn", others[0], "close all presenters except the one on the participant's screen")
    yield clock(offset_ns, bound_ns)


def _refuses(link: Bridge, notes: list[PresenterEvent]) -> Finding:
    """Check that the presenter shows nothing that the gate has not passed: send it the marked picture without a verdict."""
    link.send_image(0, 0, marked_picture(64, 64), verdict="")
    _poll(link, LEAVE_S, notes, lambda: any(note.kind in (EventKind.REFUSED, EventKind.ONSET) for note in notes))
    if any(note.kind == EventKind.REFUSED for note in notes):
        return Finding("presenter's gate", "pass", "it refuses a picture without a verdict")
    return Finding("presenter's gate", "fail", "it did not refuse a picture without a verdict", "install the same version of rtevo there")


def _poll(link: Bridge, wait_s: float, notes: list[PresenterEvent], enough: Callable[[], bool]) -> None:
    """Serve the link for a while, and keep the notes."""
    until = time.monotonic() + wait_s
    while not enough() and time.monotonic() < until:
        notes += [event for event in link.poll(0.05) if event.kind in KEPT]


@contextmanager
def _own(endpoint: str) -> Iterator[None]:
    """Start a rehearsal's own presenter."""
    command = [sys.executable, "-m", "presenter", "--headless", "--connect", endpoint]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _nobody(link: Bridge, wait_s: float, notes: list[PresenterEvent]) -> Finding:
    said = dict.fromkeys(note.text if note.kind in NOTES else f"end {note.text}" for note in notes)
    seen = f"; seen: {'; '.join(said)}" if notes else ""
    if link.connected:
        return Finding(
            "presenter", "fail", f"it connected, but its display is not ready after {wait_s:g} s{seen}", "read its messages there"
        )
    to_do = f"start it on the stimulus PC: python -m presenter --connect {link.endpoint.replace('0.0.0.0', 'THIS-COMPUTER')} --key FILE; "
    to_do += "check the address, and that the firewall passes the port; for a longer wait: --wait S"
    return Finding("presenter", "fail", f"no presenter connected to {link.endpoint} within {wait_s:g} s{seen}", to_do)


def _screen(link: Bridge, outside: bool) -> Finding:
    """Judge the presenter's display."""
    display, hertz = link.display
    what = f"{display}, {hertz:.2f} Hz"
    figures: dict[str, float | None] = {"refresh_hz": hertz}
    if outside and display == "headless":
        return Finding(
            "presenter", "warn", f"{what}: no screen shows its pictures", "start it without --headless for a participant", figures
        )
    if hertz < LEAST_HZ:
        to_do = "check the screen's settings; python -m presenter --selftest shows more"
        return Finding("presenter", "warn", f"{what}: a slow screen", to_do, figures)
    return Finding("presenter", "pass", what, "", figures)


def clock(offset_ns: int, bound_ns: int) -> Finding:
    """Judge the error bound of the stimulus PC's clock."""
    if bound_ns < 0:
        return Finding("presenter's clock", "fail", "it has answered no ping", "check the network between the two computers")
    what = f"offset {offset_ns / 1e9:.6f} s, known to {bound_ns / 1e6:.3f} ms"
    figures: dict[str, float | None] = {"offset_s": offset_ns / 1e9, "bound_ms": bound_ns / 1e6}
    if bound_ns > KNOWN_MS * 1e6:
        return Finding(
            "presenter's clock", "warn", what, "use a cable instead of wireless, a direct connection instead of the campus network", figures
        )
    return Finding("presenter's clock", "pass", what, "", figures)


def conductance(known: Known) -> Iterator[Finding]:
    """Check that skin conductance arrives, if it drives evolution."""
    config = known.config
    if config.session.condition != "physiology":
        return
    with closing(Physiology(config.bridge.osc, config.bridge.osc_path)) as sensor:
        known.tell(f"waiting for skin conductance at {sensor.endpoint}")
        until = time.monotonic() + SAMPLES_S
        while not sensor.samples and time.monotonic() < until:
            sensor.poll()
            time.sleep(0.02)
        if not sensor.samples:
            to_do = f"have the recorder send {config.bridge.osc_path} to {sensor.endpoint} (UDP)"
            yield Finding("skin conductance", "fail", f"no sample arrived at {sensor.endpoint} within {SAMPLES_S:g} s", to_do)
        else:
            yield Finding("skin conductance", "pass", f"arrives at {sensor.endpoint}")

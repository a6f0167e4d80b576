"""The session's state, and whom or what it waits for, in the same words on the page and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable

from rtevo.config import presenter_is_outside
from rtevo.console.view import View
from rtevo.session.orders import bit_of

__all__ = ["FOLLOWING", "OVER", "awaited", "how_it_ended", "state_of"]

FOLLOWING = {  # what may follow a run of a visit: key at the terminal, its name, what it means
    "next": ("n", "next run", "evolution and decoder continue from the end of this run"),
    "again": ("s", "same again", "this run is repeated from its beginning, and does not count"),
    "resume": ("r", "resume run", "this run continues at the first image not shown, with a new run of the scanner"),
    "end": ("e", "end the visit", ""),
}
OVER = ("", "completed", "stopped", "unscored")  # by the shared word `over`


def state_of(get: Callable[[str], int], view: View) -> str:
    """Return what the session is doing: "starting", "ready", "presenter", "trigger" or "volume" (waited for), "placing", ...

    Parameters
    ----------
    get : callable
        Of the session's shared words.
    view : View
        What its log tells.
    """
    if get("offered"):
        return "between"
    if get("chosen") and not get("chosen") & bit_of("end"):
        return "following"
    if ended := how_it_ended(get):
        return ended
    if get("waiting"):
        return "ready"
    if not get("started_ns"):
        return "starting"
    if get("end") or view.scene == "over":
        return "stopping"
    if get("pause"):
        return "paused" if view.scene == "paused" else "pausing"
    if get("held"):
        return "held"
    if view.run.trigger_ns is None:
        return "trigger" if view.presenter else "presenter"
    if not view.placed:
        if math.isnan(view.volume_s):
            return "volume"
        return "asked" if get("placement_asked") and view.asked is not None else "placing"
    return "running"


def how_it_ended(get: Callable[[str], int]) -> str:
    """Return how the session has ended, of `OVER` or "failed"; empty while it runs."""
    return OVER[get("over")] or ("failed" if get("abort") else "")


def awaited(state: str, view: View) -> str:
    """Return what the session waits for, or that it runs; empty if that is not known."""
    if state == "running":
        return {"late": "waits for the next image to be painted", "rating": "waits for the participant's rating"}.get(view.scene, "running")
    link = view.config.bridge.bind
    return {
        "starting": "getting ready",
        "ready": "waits for Start (at the console)",
        "presenter": f"waits for the presenter at {link}" if presenter_is_outside(view.config) else "waits for the presenter",
        "trigger": "waits for the scanner's trigger",
        "volume": "waits for the first volume",
        "placing": "waits for steady volumes, to place the decoder",
        "asked": "waits for you: is the decoder well placed?",
        "pausing": "pauses after this image",
        "paused": "paused, waits for you to go on (at the console)",
        "held": "waits for you: images are held",
        "stopping": "waits for the last volumes" if view.localizer else "waits for the last scores",
        "between": "over, waits for you: what follows?",
        "following": "over, what follows is being prepared",
    }.get(state, "")

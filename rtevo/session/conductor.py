"""The conductor of the lock-step: it advances session time when everything is at rest.

A session is at rest if all rings have been read to their ends, all delivered files have been handled, and scanner and presenter both wait.
Because these are many counters, they are read twice; only if nothing moved in between was everything at rest (Mattern 1987, "Algorithms for
distributed termination detection", doi:10.1007/BF01782776).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rtevo.session.clock import NEVER, RUNNING, Clock
from rtevo.session.rings import readers_of
from rtevo.shm import Ring

__all__ = ["Conductor"]

ORDER = ("scanner", "presenter")  # the scanner first, if both are due
ACTED_ON = (("placed", "placed_told"), ("held", "held_told"))  # words that the bridge must have handled, and so passed on to the presenter


class Conductor:
    """Moves a session's virtual time.

    Parameters
    ----------
    clock : Clock
        In lock-step.
    rings : mapping of str to Ring
        The session's rings by name.
    devices : int
        Number of processes that paint.
    bridge_left : callable
        Returns whether the bridge has ended, and so no longer handles words for the presenter.
    at_rest : callable, optional
        Called whenever everything is at rest, before time moves; its changes are handled first.
    localizer : bool
        A localizer, with fewer rings.
    """

    def __init__(
        self,
        clock: Clock,
        rings: Mapping[str, Ring],
        devices: int,
        bridge_left: Callable[[], bool],
        at_rest: Callable[[], None] = lambda: None,
        localizer: bool = False,
    ) -> None:
        self._clock, self._rings, self._bridge_left, self._at_rest = clock, rings, bridge_left, at_rest
        self._readers = {name: readers_of(name, devices, localizer) for name in rings}

    def state(self) -> tuple[int, ...] | None:
        """Return all counters if everything seems at rest, else None."""
        get = self._clock.get
        words = [get(word) for word in ("scanner_wake_ns", "presenter_wake_ns", "delivered", "settled")]
        if RUNNING in words[:2] or words[2] != words[3]:
            return None
        if not self._bridge_left() and (any(get(word) != get(told) for word, told in ACTED_ON) or self._winding_down()):
            return None
        published = []
        for name, ring in self._rings.items():
            if any(ring.lag(reader) for reader in self._readers[name]):
                return None
            published.append(ring.published)
        return (*words, *published)

    def _winding_down(self) -> bool:
        """Return whether a closed ring's end has not reached its readers yet: a closing is not a message in the counters."""
        images = [ring.closed for name, ring in self._rings.items() if name.startswith("images")]
        latents = self._rings.get("latents")
        return (latents is not None and latents.closed and not all(images)) or (all(images) and not self._clock.get("images_told"))

    def conduct(self) -> None:
        """Move time to the next wake-up, if everything is at rest."""
        clock = self._clock
        if clock.get("pause") and clock.get("presenter_wake_ns") == NEVER and not self._bridge_left():
            return  # the presenter holds fixation
        state = self.state()
        if state is None or state != self.state():
            return
        self._at_rest()
        if clock.get("held") != clock.get("held_told"):
            return
        who = min(ORDER, key=lambda name: clock.get(f"{name}_wake_ns"))
        if clock.get(f"{who}_wake_ns") != NEVER:
            clock.grant(who)

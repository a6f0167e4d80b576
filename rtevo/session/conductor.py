"""The conductor of the lock-step: session time moves on only when everything is at rest.

At rest is a session whose rings have all been read to their ends, whose delivered files have all been looked at, and whose scanner and
presenter both wait. As these are many counters, they are read twice; only if nothing moved in between was everything at rest (Mattern
1987, "Algorithms for distributed termination detection", doi:10.1007/BF01782776).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rtevo.session.clock import NEVER, RUNNING, Clock
from rtevo.session.rings import readers_of
from rtevo.shm import Ring

__all__ = ["Conductor"]

ORDER = ("scanner", "presenter")  # the scanner first where both are due
ACTED_ON = (("placed", "placed_told"), ("held", "held_told"))  # words that the bridge must have acted on: the presenter knows them then


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
        Whether the bridge has ended: nobody acts on words for the presenter any more.
    at_rest : callable, optional
        Called whenever everything is at rest, before time moves: what it changes is acted on first.
    localizer : bool
        Nothing evolves: there are fewer rings.
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
        """Return all counters where everything seems at rest, else None."""
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
        """Whether a ring has been closed, and the end of it has not come through yet: a closing is no message that waits to be read."""
        images = [ring.closed for name, ring in self._rings.items() if name.startswith("images")]
        latents = self._rings.get("latents")
        return (latents is not None and latents.closed and not all(images)) or (all(images) and not self._clock.get("images_told"))

    def conduct(self) -> None:
        """Move time to what is waited for next, where everything is at rest."""
        clock = self._clock
        if clock.get("pause") and clock.get("presenter_wake_ns") == NEVER and not self._bridge_left():
            return  # it holds fixation
        state = self.state()
        if state is None or state != self.state():
            return
        self._at_rest()
        if clock.get("held") != clock.get("held_told"):
            return
        who = min(ORDER, key=lambda name: clock.get(f"{name}_wake_ns"))
        if clock.get(f"{who}_wake_ns") != NEVER:
            clock.grant(who)

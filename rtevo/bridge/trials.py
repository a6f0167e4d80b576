"""The presenter's current trial, so that the bridge can end it if the presenter dies."""

from __future__ import annotations

from dataclasses import replace

from rtevo.bridge.events import PresenterEvent
from rtevo.records import EventKind

__all__ = ["Trial"]


class Trial:
    """The events that are still missing for an image that has appeared.

    Parameters
    ----------
    rated : bool
        A rating follows each image.
    """

    def __init__(self, rated: bool) -> None:
        self._rated = rated
        self._onset: PresenterEvent | None = None
        self._awaited: set[EventKind] = set()

    @property
    def showing(self) -> tuple[int, int] | None:
        """The image on the screen."""
        onset = self._onset
        return (onset.generation, onset.candidate) if onset is not None and EventKind.OFFSET in self._awaited else None

    def take(self, event: PresenterEvent) -> None:
        """Handle an event of the presenter."""
        if event.kind == EventKind.ONSET:
            self._onset = event
            self._awaited = {EventKind.OFFSET} | ({EventKind.RATING} if self._rated else set())
        elif event.kind in (EventKind.OFFSET, EventKind.RATING):
            self._awaited.discard(EventKind(event.kind))
        elif event.kind == EventKind.TAKEN and (event.generation, event.candidate) == self.showing:
            self._awaited.discard(EventKind.RATING)

    def close(self, alive_ns: int, now_ns: int, number: int) -> list[PresenterEvent]:
        """Return the events that a presenter which died in a trial did not send; their time is guessed, after its last sign of life.

        Parameters
        ----------
        alive_ns, now_ns : int
            The presenter certainly ran at the first time, and does not at the second, ns.
        number : int
            `PresenterEvent.sequence` of the bridge's own events.
        """
        onset, awaited = self._onset, sorted(self._awaited)
        if onset is None:
            return []
        last = max(onset.mono_ns - onset.error_ns, min(alive_ns, now_ns))
        own = PresenterEvent(
            onset.kind, onset.generation, onset.candidate, (last + now_ns) // 2, (now_ns - last) // 2 + 1,
            text="the presenter was restarted", guess=True, sequence=number,
        )  # fmt: skip
        self._onset, self._awaited = None, set()
        return [replace(own, kind=kind) for kind in awaited]

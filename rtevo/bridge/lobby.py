"""The stimulus PC between the runs of a visit: it stays connected, and shows its text until it is known what follows."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from rtevo.bridge.bridge import Bridge
from rtevo.errors import LinkError
from rtevo.records import EventKind
from rtevo.wire import PresentationSettings

__all__ = ["Lobby"]

DUMMIES, SLICES = 1000, 10_000  # volumes, and pulses of each, that begin nothing: whatever is scanned between runs
PATIENCE_S = 1e6  # for a presenter that does not answer: nobody waits for it here
LEAVE_S = 10.0


class Lobby:
    """A bridge without a run behind it; a context manager.

    Parameters
    ----------
    bind : str
        As of the runs' bridge.
    settings : PresentationSettings
        Of the run that is over; its end text is shown where the visit is over, too.
    text : str
        Shown while it is open.
    keys : Path, optional
        As of the runs' bridge.

    Raises
    ------
    LinkError
        `bind` cannot be listened at.
    """

    def __init__(self, bind: str, settings: PresentationSettings, text: str, keys: Path | None = None) -> None:
        here = replace(settings, wait_text=text, speed=1.0, lsl=False, dummy_triggers=DUMMIES, pulses_per_volume=SLICES)
        self._link = Bridge(bind, here, keys=keys, lost_s=PATIENCE_S, session=f"between-{secrets.token_hex(3)}")

    def __enter__(self) -> Lobby:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._link.close()

    @property
    def there(self) -> bool:
        """Whether the presenter is there, and shows the text."""
        return self._link.ready and self._link.connected

    def serve(self) -> bool:
        """Look at the link once; returns whether the participant asks to stop."""
        return any(event.kind == EventKind.STOP_ASKED for event in self._link.poll(0.0))

    def leave(self, reason: str, wait: bool) -> None:
        """Let the presenter go.

        Parameters
        ----------
        reason : str
            See :class:`rtevo.wire.End`.
        wait : bool
            Also for a presenter that has not come yet: it is on its way from the last run.
        """
        deadline, ended = time.monotonic() + LEAVE_S, False
        try:
            while wait and not self._link.ready and time.monotonic() < deadline:
                self._link.poll(0.05)
            if not self._link.connected:
                return
            self._link.end(reason)
            while not ended and time.monotonic() < deadline:
                ended = any(event.kind == EventKind.END for event in self._link.poll(0.05))
        except LinkError:
            return  # it is not there any more

"""The stimulus PC between the runs of a visit: it stays connected, and shows its text until the next run is chosen."""

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

DUMMIES, SLICES = 1000, 10_000  # volumes, and pulses of each, that start no session: scans between runs
PATIENCE_S = 1e6  # limit for a presenter that does not answer: nothing depends on it here
LEAVE_S = 10.0


class Lobby:
    """A bridge without a run; a context manager.

    Parameters
    ----------
    bind : str
        As for the runs' bridge.
    settings : PresentationSettings
        Settings of the run that is over; its end text is also the visit's.
    text : str
        Text shown while the lobby is open.
    keys : Path, optional
        As for the runs' bridge.

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
        """Whether the presenter is connected and shows the text."""
        return self._link.ready and self._link.connected

    def serve(self) -> bool:
        """Serve the link once; return whether the participant asks to stop."""
        return any(event.kind == EventKind.STOP_ASKED for event in self._link.poll(0.0))

    def leave(self, reason: str, wait: bool) -> None:
        """Release the presenter.

        Parameters
        ----------
        reason : str
            See :class:`rtevo.wire.End`.
        wait : bool
            Wait also for a presenter that has not come yet from the last run.
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
            return  # it has gone

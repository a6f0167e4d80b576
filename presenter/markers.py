"""Markers of the Lab Streaming Layer (pylsl), to align EEG, eye tracking or physiology with the session."""

from __future__ import annotations

import time
from collections.abc import Callable

from presenter.display import DisplayError

__all__ = ["open_markers"]


def open_markers(session: str, now_ns: Callable[[], int] = time.perf_counter_ns) -> Callable[[str, int], None]:
    """Open a stream of markers named "rtevo"; return a function that sends (text, ns of the display's clock).

    Parameters
    ----------
    session : str
        Identifies the stream, so that recorders find it again after a restart.
    now_ns : callable
        The display's clock.

    Raises
    ------
    DisplayError
        pylsl is not installed here.
    """
    try:
        import pylsl
    except (ImportError, RuntimeError) as error:  # RuntimeError: no liblsl
        raise DisplayError(f"[presentation] lsl: pylsl is needed here (pip install pylsl): {error}") from error
    outlet = pylsl.StreamOutlet(pylsl.StreamInfo("rtevo", "Markers", 1, pylsl.IRREGULAR_RATE, pylsl.cf_string, f"rtevo-{session}"))

    def mark(text: str, t_ns: int) -> None:
        outlet.push_sample([text], pylsl.local_clock() - (now_ns() - t_ns) / 1e9)

    return mark

"""The session's log -> the operator's page; the operator's actions -> the supervisor."""

from __future__ import annotations

import os

from rtevo.session.context import Context

NICENESS = 10  # processes that compute for the participant have priority


def run(context: Context) -> None:
    """The session's log -> the operator's page; the operator's actions -> the supervisor."""
    if context.clock.get("started_ns"):  # restarted during the session
        os.nice(NICENESS)
    from rtevo.console.server import serve

    os.nice(NICENESS - os.nice(0))
    serve(context)

"""The session's log -> the operator's page; what the operator does -> the supervisor."""

from __future__ import annotations

import os

from rtevo.session.context import Context

NICENESS = 10  # whoever computes for the participant comes first


def run(context: Context) -> None:
    """The session's log -> the operator's page; what the operator does -> the supervisor."""
    if context.clock.get("started_ns"):  # started again, amid the session
        os.nice(NICENESS)
    from rtevo.console.server import serve

    os.nice(NICENESS - os.nice(0))
    serve(context)

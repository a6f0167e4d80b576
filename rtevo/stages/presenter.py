"""A rehearsal's stimulus PC: the presenter with its headless display."""

from __future__ import annotations

from rtevo.session.context import Context

__all__ = ["run"]


def run(context: Context) -> None:
    """Simulate the stimulus PC: the presenter with its headless display."""
    from presenter.run import present

    context.ready()
    if endpoint := context.wait_for_go().get("endpoint"):
        present(endpoint, headless=True, participant=context.plan.participant_endpoint, restarts=False)

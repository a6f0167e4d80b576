"""The operator's actions, at the console or the terminal, and the shared words that they set."""

from __future__ import annotations

from collections.abc import Iterable

from rtevo.records import Decision

__all__ = ["ANSWERS", "ASKED", "CHOICES", "OPERATOR", "ORDERS", "SAID", "bit_of", "bits_of", "choices_of"]

OPERATOR: dict[str, tuple[str, int] | None] = {  # shared words
    "start": ("waiting", 0),
    "pause": ("pause", 1),
    "go_on": ("pause", 0),
    "stop": ("end", 1),
    "restart": ("restart", 1),
    "seen": None,
    "accept": None,
    "again": None,
    "admit": None,
    "correct": None,
    "mark": None,
    "show": None,
    "veto": None,
    "away": None,
}
ORDERS = ("show", "veto", "away")  # orders for images, sent to the bridge
ASKED = {
    "admit": ("presenter_waits", "presenter_admitted"),
    "correct": ("start_shift", "start_accepted"),
}  # words of the question and of the answer
ANSWERS = {"accept": Decision.ACCEPTED, "again": Decision.AGAIN}  # answers to a placement that waits for the operator
CHOICES = {"next_run": "next", "same_again": "again", "resume_run": "resume", "end_visit": "end"}
"""What can follow a run of a visit, by the action that chooses it."""
SAID = "said-between-runs.txt"
"""File in a session's runtime folder with messages for the operator between two runs, when the log is closed; a line each."""


def bit_of(choice: str) -> int:
    """Return the bit of a choice in the shared words ``offered`` and ``chosen``."""
    return 1 << list(CHOICES.values()).index(choice)


def bits_of(choices: Iterable[str]) -> int:
    """Return the combined bits of several choices."""
    return sum(map(bit_of, choices))


def choices_of(bits: int) -> tuple[str, ...]:
    """Return the choices whose bits are set."""
    return tuple(choice for choice in CHOICES.values() if bits & bit_of(choice))

"""What the self-test makes of its measurements, and what a session does to this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from presenter.selftest import _verdicts

REPOSITORY = Path(__file__).resolve().parents[2]
GOOD: dict[str, Any] = {
    "display": "psychopy",
    "frames": {"n": 600, "dropped": 0},
    "keys": {"backend": "Psychtoolbox", "exact": True, "pressed": [], "missing": [], "elsewhere": 0},
    "trigger": {"source": "parallel:0x378", "pulses": 10, "shortest_ms": 0.4},
}


@pytest.mark.parametrize(
    ("part", "found", "words"),
    [
        ("trigger", {"shortest_ms": 4.2}, "pulses shorter than 4.2 ms may be missed at the parallel port"),
        ("trigger", {"pulses": 0}, "no pulse arrived from parallel:0x378"),
        ("keys", {"exact": False}, "Psychtoolbox is missing"),
        ("keys", {"missing": ["3", "4"]}, "keys of the session that did not arrive: 3, 4"),
        ("keys", {"elsewhere": 2}, "keys were typed into another window"),
    ],
)
def test_what_should_be_seen_to(part: str, found: dict[str, Any], words: str) -> None:
    assert _verdicts(GOOD) == []
    [verdict] = _verdicts({**GOOD, part: {**GOOD[part], **found}})
    assert verdict.startswith(words)


def test_python_tidies_up_only_when_it_is_told_to_while_a_session_runs() -> None:
    """In a process of its own: the priority cannot be lowered and raised again everywhere."""
    script = (
        "import gc, sys\n"
        "from presenter.priority import undisturbed\n"
        "before = sys.getswitchinterval()\n"
        "with undisturbed() as how:\n"
        "    print(gc.isenabled(), sys.getswitchinterval() < before, isinstance(how, str))\n"
        "print(gc.isenabled(), sys.getswitchinterval() == before, gc.get_freeze_count())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split("\n")[:2] == ["False True True", "True True 0"]

"""Whole sessions, run as a user runs them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Finished:
    """A session that has ended."""

    out: Path
    returncode: int
    printed: str

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "summary.json").read_text()))

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.out / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter="\t"))


QUICK = {"generator": "steps = 4", "simulation": "voxel_mm = [6.0, 6.0, 6.6]"}
"""Keys that a session's file gets in its sections: an eighth of the voxels, fewer denoising steps, the same code."""


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "rtevo.run", "--out", str(out), *options]


def quickly(options: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """Add `QUICK` to the session file among the options, or write one."""
    given = next((option for option in options if option.endswith(".toml")), None)
    file = folder / (given or "quick.toml")
    text = file.read_text(encoding="utf-8") if given else ""
    for section, keys in QUICK.items():
        if keys not in text:
            head = f"[{section}]\n"
            text = text.replace(head, f"{head}{keys}\n") if head in text else f"{text}{head}{keys}\n"
    file.write_text(text, encoding="utf-8")
    return options if given else (str(file), *options)


@pytest.fixture
def session(tmp_path: Path) -> Callable[..., Finished]:
    """Return a function that runs a session to its end: quickly, or as it comes."""

    def run(*options: str, name: str = "out", quick: bool = True) -> Finished:
        out = tmp_path / name
        if quick:
            options = quickly(options, tmp_path)
        done = subprocess.run(command(out, *options), capture_output=True, text=True, timeout=200, cwd=tmp_path)
        return Finished(out, done.returncode, done.stdout + done.stderr)

    return run


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], Path]]]:
    """Return a function that starts a session in real time and gives it once the presenter has come."""
    started: list[subprocess.Popen[str]] = []

    def run(*options: str) -> tuple[subprocess.Popen[str], Path]:
        out = tmp_path / "out"
        options = quickly(options, tmp_path)
        process = subprocess.Popen(command(out, *options), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path)
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if "has come" in line:
                return process, out
        raise AssertionError(f"the session left with {process.wait()} before it began")

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()

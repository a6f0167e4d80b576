"""Whole sessions, run as a user runs them."""

from __future__ import annotations

import csv
import json
import multiprocessing as mp
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rtevo.supervisor import PRELOADED


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


WARM = (*PRELOADED, "rtevo.run", "torch", "transformers.models.clip.modeling_clip", "diffusers.models.unets.unet_2d_condition")
"""What a session imports: half of the processor time of a quick one."""


def warm_run(arguments: list[str], folder: Path, printed: Path) -> None:
    """Do what ``python -m rtevo.run`` does where all modules are imported already; stages are forked from here."""
    from rtevo import run, supervisor

    os.chdir(folder)
    file = os.open(printed, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    fork = mp.get_context("fork")
    supervisor.mp.get_context = lambda _: fork  # type: ignore[assignment]
    sys.exit(run.main(arguments))


def run_warm(arguments: list[str], folder: Path, printed: Path) -> int:
    """Run a session to its end in a fork of a process that has imported everything; returns its exit status."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(WARM))
    with pytest.MonkeyPatch.context() as patch:  # the server keeps the environment that it was started in
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        process = context.Process(target=warm_run, args=(arguments, folder, printed))
        process.start()
    process.join(200)
    status = process.exitcode
    process.kill()
    assert status is not None, f"after 200 s the session still ran: {printed.read_text()[-2000:]}"
    return status


@pytest.fixture(scope="session")
def warm() -> Callable[[list[str], Path, Path], int]:
    """:func:`run_warm`."""
    return run_warm


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
    """Return a function that runs a session to its end: quickly, or as it comes; warm, or by the command."""

    def run(*options: str, name: str = "out", quick: bool = True, warm: bool = True) -> Finished:
        out = tmp_path / name
        if quick:
            options = quickly(options, tmp_path)
        if warm:
            printed = tmp_path / f"{name}.printed"
            return Finished(out, run_warm(command(out, *options)[3:], tmp_path, printed), printed.read_text())
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

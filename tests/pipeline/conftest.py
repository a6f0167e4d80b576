"""Whole sessions, run as a user runs them."""

from __future__ import annotations

import csv
import importlib
import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
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


def warm_run(arguments: list[str], folder: Path, printed: Path | Connection, module: str) -> None:
    """Do what ``python -m MODULE`` does where all modules are imported already; stages are forked from here."""
    from rtevo import supervisor

    os.setsid()
    os.chdir(folder)
    file = os.open(printed, os.O_RDWR | os.O_CREAT | os.O_APPEND) if isinstance(printed, Path) else printed.fileno()
    for stream in (1, 2):
        os.dup2(file, stream)
    if os.isatty(file):
        os.dup2(file, 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    if not isinstance(printed, Path):
        printed.close()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - the one before had its place in another file
    fork = mp.get_context("fork")
    supervisor.mp.get_context = lambda _: fork  # type: ignore[assignment]
    sys.exit(importlib.import_module(module).main(arguments))


class Warm:
    """A session in a fork of a process that has imported everything; used like the :class:`subprocess.Popen` of the command.

    It has a process group of its own. What it prints goes to a file, where one is given, or is read from `stderr`. Of a terminal it also
    reads.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, printed: Path | None = None, module: str = "rtevo.run") -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(list(WARM))
        mine, its = context.Pipe(duplex=False)
        with mine, its, pytest.MonkeyPatch.context() as patch:  # the server keeps the environment that it was started in
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("OPENBLAS_NUM_THREADS", "1")
            self._process = context.Process(target=warm_run, args=(list(arguments), folder, printed or its, module))
            self._process.start()
            self.stderr = None if printed else os.fdopen(os.dup(mine.fileno()), errors="replace")
        self.pid = int(self._process.pid or 0)
        with suppress(ProcessLookupError):
            while os.getpgid(self.pid) != self.pid:
                time.sleep(0.001)

    def poll(self) -> int | None:
        return self._process.exitcode

    returncode = property(poll)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; kills it when that takes too long."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            self.kill()
            raise subprocess.TimeoutExpired("rtevo.run", timeout or 0.0)
        return status

    def communicate(self, timeout: float = 200.0) -> tuple[str, str]:
        """Wait until every process of it has left; gives what was printed since."""
        assert self.stderr is not None
        watchdog = threading.Timer(timeout, self.kill)
        watchdog.start()
        with self.stderr:
            printed = self.stderr.read()
        watchdog.cancel()
        self.wait(timeout)
        return "", printed

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


Running = Warm | subprocess.Popen[str]


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
    """Return a function that runs a session to its end: in lock-step or in real time; in a warm process or by the command."""

    def run(*options: str, name: str = "out", quick: bool = True, warm: bool = True) -> Finished:
        out = tmp_path / name
        if quick:
            options = quickly(options, tmp_path)
        if warm:
            process = Warm(command(out, *options)[3:], tmp_path)
            _, printed = process.communicate()
            return Finished(out, process.wait(0), printed)
        done = subprocess.run(command(out, *options), capture_output=True, text=True, timeout=200, cwd=tmp_path)
        return Finished(out, done.returncode, done.stdout + done.stderr)

    return run


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., tuple[Running, Path]]]:
    """Return a function that starts a session in real time and gives it once the presenter has come."""
    started: list[Running] = []

    def run(*options: str, warm: bool = True) -> tuple[Running, Path]:
        out = tmp_path / "out"
        words = command(out, *quickly(options, tmp_path))
        process: Running = (
            Warm(words[3:], tmp_path)
            if warm
            else subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path)
        )
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if "has come" in line:
                return process, out
        raise AssertionError(f"the session left with {process.wait(60)} before it began")

    yield run
    for process in started:
        process.kill()
        process.wait(60)
        assert process.stderr is not None
        process.stderr.close()

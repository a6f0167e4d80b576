"""The cache of compiled kernels: two processes at once, and one folder for each processor."""

from __future__ import annotations

import os
import subprocess
import sys

from rtevo.kernels import _compile

LOAD = """
import numpy as np
from rtevo.kernels import running
from rtevo.kernels._compile import cache_lock
with cache_lock():
    running.running_moments(np.zeros((2, 2, 2)), 0, np.zeros((2, 2, 2)), np.zeros((2, 2, 2)))
stats = running._add.stats
print(sum(stats.cache_misses.values()), sum(stats.cache_hits.values()))
"""


def _start(folder):
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    environment.pop("NUMBA_CACHE_DIR", None)
    return subprocess.Popen([sys.executable, "-c", LOAD], env=environment, stdout=subprocess.PIPE, text=True)


def _counts(process):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return tuple(map(int, out.split()))


def test_of_two_processes_one_compiles_and_the_other_loads(tmp_path):
    both = [_start(tmp_path), _start(tmp_path)]
    assert sorted(_counts(p) for p in both) == [(0, 1), (1, 0)]
    assert _counts(_start(tmp_path)) == (0, 1)


def test_every_processor_and_version_has_its_folder(monkeypatch):
    here = _compile._fingerprint()
    assert here == _compile._fingerprint()
    monkeypatch.setattr(_compile.llvmlite.binding, "get_host_cpu_name", lambda: "another")
    assert _compile._fingerprint().startswith("another-")
    monkeypatch.undo()
    monkeypatch.setattr(_compile.numba, "__version__", "0.0")
    assert _compile._fingerprint() != here


def test_old_folders_go(tmp_path):
    mine, old, recent = (tmp_path / name for name in ("cpu-1", "cpu-2", "cpu-3"))
    for folder in (mine, old, recent):
        folder.mkdir()
        (folder / "lock").touch()
    os.utime(old / "lock", (1.0, 1.0))
    _compile._prune(mine)
    assert {p.name for p in tmp_path.iterdir()} == {"cpu-1", "cpu-3"}


def test_a_folder_that_cannot_be_written_locks_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(_compile, "_FOLDER", tmp_path / "file" / "below")
    with _compile.cache_lock():
        pass

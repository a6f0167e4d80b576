"""The cache of compiled kernels: two processes at once, and one folder for each processor."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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


ALIGN = """
import hashlib
import numpy as np
from rtevo.kernels.smooth import smooth
from rtevo.kernels._compile import cache_folder
from rtevo.realign import Realigner, warm_up
warm_up()
ready = sorted(cache_folder().glob("**/*.nbc"))
rng = np.random.default_rng(0)
still = 1000 + 200 * smooth(rng.standard_normal((40, 40, 30)).astype(np.float32), (1, 1, 1), 5.0) / 0.05
moved = np.roll(still, 1, 0) + 0.3 * rng.standard_normal(still.shape).astype(np.float32)
with Realigner(still, np.eye(4)) as realigner:
    motion = realigner.estimate(moved)
    aligned = realigner.reslice(moved, motion)
assert motion.converged
assert len(ready) > 5
assert sorted(cache_folder().glob("**/*.nbc")) == ready, "warm_up() had left kernels to be compiled"
print(hashlib.sha256(motion.params.tobytes() + aligned.tobytes() + smooth(aligned, (1, 1, 1), 3.0).tobytes()).hexdigest())
"""


def _start(folder, program=LOAD):
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    environment.pop("NUMBA_CACHE_DIR", None)
    return subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)


def _counts(process):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return tuple(map(int, out.split()))


def test_of_two_processes_one_compiles_and_the_other_loads(tmp_path):
    both = [_start(tmp_path), _start(tmp_path)]
    assert sorted(_counts(p) for p in both) == [(0, 1), (1, 0)]
    assert _counts(_start(tmp_path)) == (0, 1)


@pytest.mark.slow
def test_the_process_that_compiles_and_one_that_loads_agree_to_the_last_bit(tmp_path):
    results = [_start(tmp_path, ALIGN).communicate(timeout=240)[0] for _ in range(2)]
    assert results[0] == results[1] != ""


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


SAY = """
from rtevo.kernels import running
from rtevo.kernels._compile import is_compiled
import numpy as np
print(int(is_compiled()), end=" ")
running.running_moments(np.zeros((2, 2, 2)), 0, np.zeros((2, 2, 2)), np.zeros((2, 2, 2)))
print(int(is_compiled()))
"""


def test_whether_there_is_compiled_code_is_known_before_the_first_call(tmp_path):
    assert _counts(_start(tmp_path, SAY)) == (0, 1)
    assert _counts(_start(tmp_path, SAY)) == (1, 1)


@pytest.mark.parametrize("there", [True, False])
def test_the_first_time_is_said_and_later_ones_are_not(monkeypatch, there):
    from rtevo.realign import realigner

    said: list[str] = []
    monkeypatch.setattr(realigner, "is_compiled", lambda: there)
    realigner.warm_up(said.append)
    assert said == ([] if there else [_compile.COMPILING])

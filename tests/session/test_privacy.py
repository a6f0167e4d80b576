"""Brain data are its owner's: other users of the computer see none."""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rtevo.bridge.keys import make_keys
from rtevo.config import Config, build
from rtevo.errors import ConfigError
from rtevo.session.checks import check_group
from rtevo.session.prepare import new_folder, runtime_folder
from rtevo.shm import Ring


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def generous() -> Iterator[None]:
    before = os.umask(0o000)  # of a user who lets everybody write
    yield
    os.umask(before)


@pytest.mark.usefixtures("generous")
def test_a_runs_folder_is_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert mode(new_folder(str(tmp_path / "a" / "b"))) == 0o700
    assert mode(new_folder("")) == 0o700


@pytest.mark.usefixtures("generous")
def test_a_group_may_read_where_the_session_says_so(tmp_path: Path) -> None:
    own = grp.getgrgid(os.getegid()).gr_name
    number = check_group(build({"record": {"group": own}}))
    out = new_folder(str(tmp_path / "a"), number)
    assert (stat.S_IMODE(out.stat().st_mode), out.stat().st_gid) == (0o2750, os.getegid())
    (out / "x").mkdir()
    assert (out / "x").stat().st_gid == os.getegid()
    assert check_group(Config()) == -1
    with pytest.raises(ConfigError, match=r"\[record\] group: expected a group of this computer, got 'nobody of that name'"):
        check_group(build({"record": {"group": "nobody of that name"}}))


@pytest.mark.usefixtures("generous")
def test_shared_memory_runtime_and_key_files_are_their_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert mode(runtime_folder()) == 0o700
    make_keys(tmp_path / "keys", ["presenter"])
    assert mode(tmp_path / "keys") == 0o700
    assert [mode(path) for path in sorted((tmp_path / "keys").iterdir())] == [0o600, 0o600]
    before = set(Path("/dev/shm").iterdir())
    with Ring.create(f"/rtevo-privacy-{os.getpid()}", np.dtype([("x", "<f4")]), slots=2, readers=("x",)):
        made = [path for path in set(Path("/dev/shm").iterdir()) - before if f"privacy-{os.getpid()}" in path.name]
        assert made
        assert all(mode(path) & 0o077 == 0 for path in made)

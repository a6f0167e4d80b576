"""Shared fixtures: where the real scanner files are, and thread settings that keep two cores usable."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("busy", deadline=None)  # no test fails because the computer is busy
settings.load_profile("busy")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def scanner_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that unpacks one archive of real scanner files and returns its folder; skip if there is none."""
    source = Path(os.environ.get("RTEVO_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    unpacked: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if name not in unpacked:
            archive = source / f"{name}.tar.xz"
            if not archive.exists():
                pytest.skip(f"no real scanner files: {archive} is not there (set RTEVO_TEST_DATA)")
            into = tmp_path_factory.mktemp(name)
            with tarfile.open(archive) as tar:
                tar.extractall(into, filter="data")
            unpacked[name] = into / name
        return unpacked[name]

    return unpack

"""The lock file of a site's install is what ``pyproject.toml`` asks for, whole, and with hashes; looked at without a network."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "build" / "site.lock"
SITE = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
SITE |= {"platform_machine": "x86_64", "implementation_name": "cpython", "platform_python_implementation": "CPython", "extra": ""}


@pytest.fixture(scope="module")
def text() -> str:
    return LOCK.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def locked(text: str) -> dict[str, str]:
    """Versions by package."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+) \\$", text, re.M)
    assert len({canonicalize_name(name) for name, _ in found}) == len(found)
    return {canonicalize_name(name): version for name, version in found}


def wanted(text: str) -> list[Requirement]:
    """What the project asks for with the extras that the lock file's own command names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r"--extra (\S+)", text)
    assert extras
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def test_everything_that_the_project_asks_for_is_locked_at_a_version_that_it_allows(text: str, locked: dict[str, str]) -> None:
    wrong = [
        f"{requirement}: locked {locked.get(canonicalize_name(requirement.name), 'not at all')}"
        for requirement in wanted(text)
        if (requirement.marker is None or requirement.marker.evaluate(SITE))
        and not requirement.specifier.contains(locked.get(canonicalize_name(requirement.name), "0"), prereleases=True)
    ]
    assert not wrong, "make build/site.lock anew with the command at its head"
    assert locked["torch"] == "2.13.0"


def test_every_line_is_a_package_with_hashes_or_a_comment(text: str, locked: dict[str, str]) -> None:
    """pip then takes nothing that is not listed here, nor any other file under its name."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    packages = [number for number, line in enumerate(lines) if re.fullmatch(r"[A-Za-z0-9._-]+==\S+ \\", line)]
    assert len(packages) == len(locked)
    for begin, end in zip(packages, [*packages[1:], len(lines)], strict=True):
        hashes = lines[begin + 1 : end]
        assert hashes
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes)
        assert [line.endswith("\\") for line in hashes] == [True] * (len(hashes) - 1) + [False]


def test_what_locked_packages_need_is_locked_too(locked: dict[str, str]) -> None:
    """As far as those of the same version are installed here, and say what they need."""
    missing = []
    for distribution in metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if locked.get(name) != distribution.version:
            continue
        needs = [Requirement(line) for line in distribution.requires or []]
        names = {canonicalize_name(need.name) for need in needs if need.marker is None or need.marker.evaluate(SITE)}
        missing += [f"{name} needs {other}" for other in sorted(names - locked.keys())]
    assert not missing

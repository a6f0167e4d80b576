"""The support computer: each check once where all is well, and once where it is not."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.errors import ConfigError
from rtevo.preflight import machine
from rtevo.preflight.findings import Known
from rtevo.shm import Ring, process
from rtevo.shm import segment as segments

from .conftest import verdicts

Make = Callable[..., Known]
SLOT = np.dtype([("x", "<i8")])
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Any]], None]:
    """Return a function that lets the checks see only the given segments: other tests run beside this one."""
    monkeypatch.setattr("rtevo.shm.clean", list)

    def see(entries: list[Any]) -> None:
        monkeypatch.setattr(segments, "list_segments", lambda: entries)

    return see


def test_nothing_is_left_and_what_is_left_is_removed(
    known: Make, alone: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone([])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (found,) = machine.leftovers(known())
    assert (found.verdict, found.found) == ("pass", "no leftovers of killed sessions")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    (tmp_path / f"rtevo-run-{process.pid}-x").mkdir()
    (found,) = machine.leftovers(known())
    assert (found.verdict, found.found) == ("pass", "leftovers of killed sessions removed: 1")
    assert not list(tmp_path.iterdir())


def test_the_page_can_be_served_or_the_reason_is_told(known: Make) -> None:
    assert list(machine.console(known())) == []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        session = known({"console": {"port": port}})
        if importlib.util.find_spec("nicegui") is None:
            with pytest.raises(ConfigError, match="needs the package nicegui"):
                list(machine.console(session))
            return
        with pytest.raises(ConfigError, match=rf"\[console\] port: 127\.0\.0\.1:{port} cannot be listened at"):
            list(machine.console(session))
    (found,) = machine.console(session)
    assert (found.verdict, found.found) == ("pass", f"can be served at 127.0.0.1:{port}; reachable from this computer only")


def test_sessions_that_run_are_named(known: Make, alone: Callable[..., None]) -> None:
    name = f"/rtevo-t{os.getpid()}-pf"
    with Ring.create(name, SLOT, 2, ["a"]):
        entry = segments._inspect(name)
        alone([entry])
        (found,) = machine.leftovers(known())
        assert (found.verdict, f"(process {os.getpid()})" in found.found) == ("warn", True)
        alone([segments.Entry(name, entry.segment, owner_alive=False, attached=(77,))])
        (found,) = machine.leftovers(known())
        assert (found.verdict, found.to_do) == ("fail", "end them: kill 77")
        alone([segments.Entry(name, None)])
        assert verdicts(list(machine.leftovers(known()))) == {"leftovers": "warn"}


def test_room_and_speed_of_the_disk(known: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "WRITES_S", 0.01)
    state = known({"record": {"out": str(tmp_path / "new" / "run")}})
    found = list(machine.disk(state))
    assert {each.check for each in found} == {"disk space", "disk speed"}
    assert found[0].verdict == "pass"
    assert not list(tmp_path.iterdir())  # nothing stays
    volume, total = machine.needed(state)
    assert volume == 2 * 16 * 15 * 12
    for free, verdict in ((total - 1, "fail"), (total + 1, "warn")):
        with monkeypatch.context() as other:
            other.setattr(machine.shutil, "disk_usage", lambda _, free=free: Usage(10**9, 0, free))
            assert next(machine.disk(state)).verdict == verdict


def test_a_disk_that_is_slow(known: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for times_s, verdict in (([0.1] * 3, "pass"), ([0.1] * 4 + [3.0], "warn"), ([2.5] * 3, "fail")):
        ticks = [0.0, *(t for k, taken in enumerate(times_s) for t in (0.01, 10.0 * k, 10.0 * k + taken)), 1e9]
        with monkeypatch.context() as clock:
            clock.setattr(machine, "WRITES_S", 1e8)
            clock.setattr(machine.time, "monotonic", iter(ticks).__next__)
            found = machine._write(known(), tmp_path, 1 << 16)
        assert verdicts([found]) == {"disk speed": verdict}


def test_an_output_folder_that_is_there_or_cannot_be_written(known: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="does not exist yet"):
        list(machine.disk(known({"record": {"out": str(tmp_path)}})))

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(ConfigError, match="cannot be written to: Permission denied"):
        list(machine.disk(known({"record": {"out": str(tmp_path / "new")}})))


def test_what_is_received_or_aligned_takes_room_too(known: Make) -> None:
    plain, _ = machine.needed(known())
    both, _ = machine.needed(known({"record": {"save_volumes": "both"}, "acquisition": {"delivery": "push"}}))
    assert both == plain + 2 * plain + plain


def test_shared_memory(known: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = machine.shared_memory(known())
    assert found.verdict == "pass"
    assert found.figures["rings_bytes"] > 16 * 4 * 16 * 15 * 12
    own = process.own_identity()
    assert not [entry.name for entry in segments.list_segments() if entry.segment is not None and entry.segment.layout.owner == own]
    with monkeypatch.context() as full:
        full.setattr(segments, "_available_memory", lambda: 1000)
        (found,) = machine.shared_memory(known())
    assert (found.verdict, "MiB of shared memory" in found.found) == ("fail", True)


def test_shared_memory_that_is_nearly_full(known: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(10**9, 0, 10**9))
    monkeypatch.setattr("rtevo.session.rings.create_rings", lambda plan, stack: {})
    assert verdicts(list(machine.shared_memory(known()))) == {"shared memory": "pass"}

    class Big:
        slots, slot_dtype = 1, np.dtype(("V", 1 << 30))

    monkeypatch.setattr("rtevo.session.rings.create_rings", lambda plan, stack: {"volumes": Big(), "images": Big(), "a": Big(), "b": Big()})
    assert verdicts(list(machine.shared_memory(known()))) == {"shared memory": "warn"}

"""Markers of the Lab Streaming Layer, read back through it."""

from __future__ import annotations

import time
from types import ModuleType

import pytest

from presenter.display import DisplayError
from presenter.markers import open_markers

LIMIT_S = 30.0


def test_markers_come_with_the_time_of_what_they_tell() -> None:
    pylsl = _pylsl()
    mark = open_markers("test-of-markers")
    found = pylsl.resolve_byprop("source_id", "rtevo-test-of-markers", timeout=10)
    if not found:
        pytest.skip("streams cannot be found here: the network lets no multicast through")
    inlet = pylsl.StreamInlet(found[0], recover=False)
    inlet.open_stream(timeout=LIMIT_S)
    before = pylsl.local_clock()
    mark("onset 0 1", time.perf_counter_ns() - 2_000_000_000)
    sample, stamp = inlet.pull_sample(timeout=LIMIT_S)
    assert sample == ["onset 0 1"]
    assert before - 2 <= stamp + 0.001
    assert stamp <= pylsl.local_clock() - 2 + 0.001
    inlet.close_stream()


def _pylsl() -> ModuleType:
    try:
        import pylsl
    except (ImportError, RuntimeError):
        pytest.skip("no pylsl here")
    return pylsl


def test_without_pylsl_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pylsl", None)
    with pytest.raises(DisplayError, match="pip install pylsl"):
        open_markers("x")

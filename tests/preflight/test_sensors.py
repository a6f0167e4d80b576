"""What is found of pulse and respiration before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rtevo.config import build
from rtevo.preflight import sensors
from rtevo.preflight.findings import Finding, Known


def found(monkeypatch: pytest.MonkeyPatch, physio: dict[str, Any], **more: Any) -> list[Finding]:
    """Findings after a moment of listening."""
    monkeypatch.setattr(sensors, "LISTEN_S", 0.05)
    return list(sensors.sensors(Known(build({"physio": physio, **more}))))


def test_a_device_that_sends_nothing_fails_and_a_simulated_one_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (silent,) = found(monkeypatch, {"cardiac": f"file:{tmp_path / 'x.puls'}", "rate_hz": 50.0})
    assert (silent.verdict, "nothing came" in silent.found) == ("fail", True)
    (simulated,) = found(monkeypatch, {"cardiac": "simulated"}, simulation={"physiology_percent": 1.0})
    assert simulated.verdict == "pass"
    assert found(monkeypatch, {}) == []

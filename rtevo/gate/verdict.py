"""What filters say of a picture."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from rtevo.records import VERDICT_BYTES

__all__ = ["Finding", "Verdict"]

MOST_SHORT = 4  # findings, of which every character may take six bytes


@dataclass(frozen=True)
class Finding:
    """What one filter says of a picture.

    Parameters
    ----------
    name, version : str
        Of the filter.
    refused : bool
    value, threshold : float
        What it measured, and where it begins to refuse; NaN where it could not measure.
    reason : str
        Why it refuses.
    ms : float
        Time that it took.
    """

    name: str
    version: str
    refused: bool
    value: float = math.nan
    threshold: float = math.nan
    reason: str = ""
    ms: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What all filters say of a picture; one that refuses is enough.

    Parameters
    ----------
    findings : tuple of Finding
    """

    findings: tuple[Finding, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether the picture may not be shown."""
        return any(finding.refused for finding in self.findings)

    @property
    def reason(self) -> str:
        """Which filters refuse, and why."""
        return "; ".join(f"{finding.name}: {finding.reason}" for finding in self.findings if finding.refused)

    def fields(self) -> list[dict[str, Any]]:
        """Give the findings as plain JSON values."""
        return [
            {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in asdict(finding).items()}
            for finding in self.findings
        ]

    def encoded(self) -> bytes:
        """Give the findings as JSON of at most `VERDICT_BYTES`; where there is no room, the reasons go first."""
        text = json.dumps(self.fields(), ensure_ascii=True)
        if len(text) > VERDICT_BYTES:
            first = sorted(self.fields(), key=lambda finding: not finding["refused"])
            short = [{name: value[:40] if isinstance(value, str) else value for name, value in finding.items()} for finding in first]
            text = json.dumps(short[:MOST_SHORT])
        return text.encode()

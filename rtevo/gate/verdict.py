"""Findings of filters, and the verdict on a picture."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from rtevo.records import VERDICT_BYTES

__all__ = ["Finding", "Verdict"]

MOST_SHORT = 4  # findings, each character of which may take six bytes


@dataclass(frozen=True)
class Finding:
    """One filter's finding on a picture.

    Parameters
    ----------
    name, version : str
        Name and version of the filter.
    refused : bool
    value, threshold : float
        The measured value, and the limit above which it refuses; NaN if it could not measure.
    reason : str
        Why it refuses.
    ms : float
        Time of the judgement.
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
    """The verdict of all filters on a picture; one refusal is enough.

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
        """The filters that refuse, and their reasons."""
        return "; ".join(f"{finding.name}: {finding.reason}" for finding in self.findings if finding.refused)

    def fields(self) -> list[dict[str, Any]]:
        """Return the findings as plain JSON values."""
        return [
            {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in asdict(finding).items()}
            for finding in self.findings
        ]

    def encoded(self) -> bytes:
        """Return the findings as JSON of at most `VERDICT_BYTES`; if they are too long, the reasons are dropped first."""
        text = json.dumps(self.fields(), ensure_ascii=True)
        if len(text) > VERDICT_BYTES:
            first = sorted(self.fields(), key=lambda finding: not finding["refused"])
            short = [{name: value[:40] if isinstance(value, str) else value for name, value in finding.items()} for finding in first]
            text = json.dumps(short[:MOST_SHORT])
        return text.encode()

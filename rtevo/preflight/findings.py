"""Findings of a preflight, and what its checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rtevo.localizer import length_s

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rtevo.config import Config
    from rtevo.decode import Decoder
    from rtevo.ingest import SeriesInfo
    from rtevo.latent import LatentSpace
    from rtevo.localizer import Trial
    from rtevo.records import Grid

__all__ = ["Check", "Finding", "Known", "Verdict", "megabytes"]

Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Parameters
    ----------
    check : str
        The thing that was checked.
    verdict : str
        ``pass``; ``warn``: a session would start, but needs attention; ``fail``: a session would not start, or not go well.
    found : str
        The finding.
    to_do : str
        What to do; empty for ``pass``.
    figures : mapping of str to float
        Measurements, for ``--json``; units in the names.
    """

    check: str
    verdict: Verdict
    found: str
    to_do: str = ""
    figures: Mapping[str, float | None] = field(default_factory=dict)


@dataclass
class Known:
    """Results of the checks so far; None: not known.

    Parameters
    ----------
    config : Config
    sample : Path, optional
        A volume of the session's protocol, named by the operator: a file, or a folder of DICOM files.
    wait_s : float
        Longest wait for the presenter, s.
    tell : callable
        Called with one line about slow work.
    """

    config: Config
    sample: Path | None = None
    wait_s: float = 30.0
    tell: Callable[[str], None] = lambda _: None
    source: SeriesInfo | None = None
    tr_s: float | None = None
    decoder: Decoder | None = None
    folder: Path | None = None  # of the decoder
    grid: Grid | None = None
    volume: NDArray[np.float32] | None = None
    reason: str = ""  # why the watched folder holds no sample
    embedding_size: int | None = None
    image_size: tuple[int, int] | None = None
    space: LatentSpace | None = None
    trials: tuple[Trial, ...] = ()  # of a localizer

    @property
    def images(self) -> int:
        """Largest number of images that may be shown."""
        from rtevo.session.course import course_settings

        return len(self.trials) or course_settings(self.config).images

    @property
    def cadence_s(self) -> float:
        """Real time from one onset to the next, s; infinite in lock-step."""
        shown = self.config.presentation
        speed = self.config.session.speed
        return (shown.image_s + shown.washout_s) / speed if speed else float("inf")

    @property
    def session_s(self) -> float:
        """Longest duration of the session, s, as far as known beforehand."""
        config, shown = self.config, self.config.presentation
        if self.trials:
            return length_s(self.trials, shown.baseline_s)
        rating_s = shown.rating_window_s if config.session.condition == "ratings" else 0.0
        each_s = shown.image_s + shown.washout_s + shown.washout_jitter_s + rating_s
        longest_s = shown.baseline_s + self.images * each_s + config.evolution.score_deadline_s
        return min(longest_s, 60 * config.evolution.stop_minutes or longest_s)


@dataclass(frozen=True)
class Check:
    """One line of the table of checks.

    Parameters
    ----------
    name : str
    run : callable
        Returns findings; may raise RtevoError, whose text is then the finding.
    needs : tuple of str
        Attributes of :class:`Known` that it requires.
    to_do : str
        What to do if it raises.
    of : str
        Task for which it is made; empty: any.
    """

    name: str
    run: Callable[[Known], Iterator[Finding]]
    needs: tuple[str, ...] = ()
    to_do: str = "correct the session file"
    of: str = ""

    def missing(self, known: Known) -> list[str]:
        """Return what an earlier check should have found and has not."""
        return [name for name in self.needs if getattr(known, name) is None]


def megabytes(size: Any) -> str:
    """Return a number of bytes as text."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"

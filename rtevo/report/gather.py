"""The data of a page about a run: its log, its pictures, the resolved session file and the versions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtevo.config import Config
from rtevo.decode.grid import Grid, ResponsePrior
from rtevo.errors import DataError, DecoderError
from rtevo.outside import read_json
from rtevo.record import LOG, AlignedRecord, ImageRecord, LatentRecord, Painting, RecordedSession, ScoreRecord, held
from rtevo.records import EventKind, VolumeFlag
from rtevo.report.gallery import Preferred, preferred

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Latency", "Learnt", "Session", "gather", "means"]

Row = dict[str, Any]
HIDDEN = ("score", "score_se", "fitness", "rating", "physiology", "true_response")  # of a blinded session that still runs


@dataclass(frozen=True)
class Latency:
    """Durations of a step, and its deadline.

    Parameters
    ----------
    name : str
        The step, in words.
    ms : ndarray, float64 (n,)
    deadline_ms : float
        Infinite where it has none.
    """

    name: str
    ms: NDArray[np.float64]
    deadline_ms: float

    @property
    def late(self) -> int:
        """Number of durations beyond the deadline."""
        return int((self.ms > self.deadline_ms).sum())


@dataclass(frozen=True)
class Learnt:
    """Estimates of the response's lag (s) and width (multiples of the canonical one), beforehand and with every score.

    Parameters
    ----------
    before : tuple of float
        Lag, its standard deviation, width, its standard deviation.
    times_s : ndarray, float64 (n,)
        Onsets of the images with whose scores it was said, s from the first volume, rising.
    values : ndarray, float64 (n, 4)
        In the order of `before`.
    own : bool
        What was known beforehand is the participant's, from the decoder.
    """

    before: tuple[float, float, float, float]
    times_s: NDArray[np.float64]
    values: NDArray[np.float64]
    own: bool


@dataclass(frozen=True)
class Session:
    """A run, read.

    Parameters
    ----------
    out : Path
    summary : dict
        See :data:`rtevo.record.files.SUMMARY`.
    settings : dict of dict
        The resolved session file, defaults laid under it.
    provenance : dict
        Empty where there is none.
    trials, motion : list of dict
        Rows of the tables; None where a number is missing.
    latencies : list of Latency
    held_s : list of float
        When fixation was held for want of an image, s from the first volume.
    blinded : bool
        The session still runs or is sealed, and nobody may know its condition: scores and condition are left out.
    painter : str
        What the generator said of itself.
    presenter : str
        What the presenter said of its display.
    gated : bool
        Its pictures were judged before they were shown.
    shown : list of dict
        Of a localizer: what was shown, rows of its events; else empty.
    learnt : Learnt or None
        Of the response; None where that is not recorded.
    preferred : Preferred or None
        What is known of the preference; None where it is hidden, and of a localizer.
    nuisance : tuple of float
        Probability of each group of nuisance terms at the end; NaN where too few volumes had shown it, empty where there were none.
    """

    out: Path
    summary: Row
    settings: dict[str, Row]
    provenance: Row
    trials: list[Row]
    motion: list[Row]
    latencies: list[Latency] = field(default_factory=list)
    held_s: list[float] = field(default_factory=list)
    blinded: bool = False
    painter: str = ""
    presenter: str = ""
    learnt: Learnt | None = None
    gated: bool = False
    shown: list[Row] = field(default_factory=list)
    preferred: Preferred | None = None
    nuisance: tuple[float, ...] = ()

    @property
    def localizer(self) -> bool:
        """Whether pictures of known categories were shown, and nothing evolved."""
        return "localizer" in self.summary

    @property
    def mask(self) -> str:
        """Where quality was measured."""
        return "the brain" if self.localizer else "the decoder's mask"

    @property
    def refused(self) -> int:
        """Number of pictures that the gate did not let through."""
        return sum(int(t.get("refused") or 0) for t in self.trials)

    @property
    def taken_away(self) -> int:
        """Number of images that somebody took away, or did not let through."""
        return sum(int(t.get("taken_away") or 0) for t in self.trials)

    @property
    def condition(self) -> str:
        """The condition that drove evolution, as far as it may be shown."""
        return "blinded" if self.blinded else str(self.summary["condition"])

    @property
    def generations(self) -> list[int]:
        """Numbers of the generations."""
        return sorted({int(t["generation"]) for t in self.evolved})

    @property
    def evolved(self) -> list[Row]:
        """Trials that are no probes."""
        return [t for t in self.trials if t.get("probe") is None]

    @property
    def probes(self) -> list[Row]:
        """Trials whose image was shown again and again."""
        return [t for t in self.trials if t.get("probe") is not None]

    def flagged(self, flag: VolumeFlag) -> list[int]:
        """Numbers of the volumes that have a flag."""
        return [int(row["volume"]) for row in self.motion if int(row["flags"]) & flag]


def gather(out: Path) -> Session:
    """Read a session's folder, and write its tables where they are older than its log.

    Raises
    ------
    DataError
        Where it holds no session, or one that has ended before its first volume.
    """
    if not (out / LOG).exists():
        raise DataError(f"{out}: expected the folder of a session (with {LOG}), found none")
    recorded, summary_file = RecordedSession(out), out / "summary.json"
    if recorded.grid is None:
        raise DataError(f"{out}: expected at least one volume, found none: there is nothing to report")
    if not summary_file.exists() or summary_file.stat().st_mtime_ns <= (out / LOG).stat().st_mtime_ns:
        recorded.save()
    summary, settings = recorded.summary, _settings(recorded.settings)
    session = Session(
        out=out,
        summary=summary,
        settings=settings,
        provenance=dict(recorded.start.provenance or _json(out / "provenance.json")),
        trials=_rows(recorded.trials),
        motion=_rows(recorded.motion),
        latencies=_latencies(recorded, settings, summary),
        held_s=held(recorded.parts),
        painter=summary.get("generator") or _said(out / "session.log", "generate: ", " steps, "),
        presenter=_presenter(recorded),
        gated=any(record.verdict is not None for record in recorded.records(ImageRecord)),
        learnt=_learnt(recorded),
        nuisance=next((tuple(r.nuisance) for r in reversed(recorded.records(ScoreRecord)) if r.nuisance), ()),
        shown=_rows(recorded.events_table) if recorded.localizer else [],
    )
    hidden = settings["session"]["condition"] == "blinded" or settings["safety"]["approval"] != "none"  # who chooses must not know
    if (hidden and recorded.end is None) or recorded.sealed:
        return _blind(session)
    return session if session.localizer else replace(session, preferred=preferred(recorded, settings["evolution"]["population"]))


def _blind(session: Session) -> Session:
    """Leave out whatever tells a session's condition, or how it goes."""
    trials = [{key: None if key in HIDDEN or key.startswith("score_") else value for key, value in row.items()} for row in session.trials]
    settings = {name: dict(part) for name, part in session.settings.items()}
    settings["evolution"].update(yoked_to="", blinding_key="", blinding_secret="")
    summary = {key: value for key, value in session.summary.items() if key not in ("generations", "probes")}
    quality = {**summary["quality"], "score_reliability": None} if "quality" in summary else {}
    return replace(session, trials=trials, settings=settings, summary={**summary, "condition": "blinded", "quality": quality}, blinded=True)


def _json(path: Path) -> Row:
    return dict(read_json(path)) if path.exists() else {}


def _settings(found: Mapping[str, Any]) -> dict[str, Row]:
    """The resolved session file, over today's defaults: older ones lack keys."""
    return {name: {**part, **found.get(name, {})} for name, part in asdict(Config()).items()}


def _rows(table: DataFrame) -> list[Row]:
    """Turn a table into rows: what is missing becomes None."""
    rows: list[Row] = table.astype(object).where(table.notna(), None).to_dict("records")
    return rows


def _said(path: Path, begin: str, part: str) -> str:
    """Find what a stage said of itself in the messages."""
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(begin)[2] for line in lines if begin in line and part in line), "")


def _presenter(recorded: RecordedSession) -> str:
    return next((event.text.partition(": ")[2] for event in recorded.events(EventKind.READY)), "")


def _learnt(recorded: RecordedSession) -> Learnt | None:
    """Read what decoding said of the response with its scores."""
    said = [r for r in recorded.records(ScoreRecord) if r.width is not None and r.width > 0]
    if not said:
        return None
    try:
        own = ResponsePrior.of(recorded.decoder.settings)
    except (DecoderError, ValueError):  # the decoder's folder is no longer there
        own = None
    grid = Grid() if own is None else Grid().known(own)
    before = grid.lag_mean_s, grid.lag_prior_s, grid.width_mean, grid.width_mean * grid.width_prior
    last = {r.onset_s: _of(r) for r in said if r.revision == 0} or {r.onset_s: _of(r) for r in said}
    times_s = np.array(sorted(last))
    values = np.array([last[t] for t in times_s])
    values[-1] = _of(said[-1])
    return Learnt(before, times_s, values, own is not None)


def _of(record: ScoreRecord) -> tuple[float, float, float, float]:
    return record.lag_s or 0.0, record.lag_sd_s or 0.0, record.width or math.nan, record.width_sd or 0.0


# --- latencies -------------------------------------------------------------------------------------------------------------------------


def _latencies(recorded: RecordedSession, settings: Mapping[str, Row], summary: Row) -> list[Latency]:
    """Every step between a file and the next picture, against its deadline; in lock-step nothing has to be in time."""
    speed = float(summary.get("speed", 1.0))
    shown, generator = settings["presentation"], settings["generator"]
    cadence_ms = 1e3 * (shown["image_s"] + shown["washout_s"])
    tr_ms = 1e3 * float(summary["tr_s"])

    def within(ms: float) -> float:
        return ms / speed if speed else math.inf

    image_ms = 1e3 * generator.get("deadline_s", 0.0) or cadence_ms
    whole = [r for r in recorded.records(AlignedRecord) if not r.flags & VolumeFlag.MISSING]
    scores = recorded.records(ScoreRecord)
    steps = [
        ("file closed -> volume read", [r.ingested_ns - r.closed_ns for r in whole], within(tr_ms)),
        ("volume read -> realigned", [r.aligned_ns - r.ingested_ns for r in whole], within(tr_ms)),
        ("last needed file -> score", [r.scored_ns - r.closed_ns for r in scores if r.closed_ns > 0], within(tr_ms)),
        ("image requested -> painted", _painting(recorded, within(cadence_ms)), within(image_ms)),
    ]
    return [Latency(name, np.array(ns, np.float64) / 1e6, deadline_ms) for name, ns, deadline_ms in steps if ns]


def _painting(recorded: RecordedSession, cadence_ms: float) -> list[float]:
    """From asking to the picture, ns."""
    found: list[float] = []
    for part in recorded.parts:
        painting = Painting(cadence_ms)
        for record in part:
            if isinstance(record, LatentRecord):
                painting.asked(record)
            elif isinstance(record, ImageRecord) and (ns := painting.painted(record)) is not None:
                found.append(ns)
    return found


# --- statistics ------------------------------------------------------------------------------------------------------------------------


def means(trials: Iterable[Row], name: str, generations: Iterable[int]) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
    """Mean of a column and its standard error by generation.

    Returns
    -------
    generations : list of int
        Those with at least one value.
    mean, se : ndarray, float64
        Standard error of the mean over a generation's images, NaN where there is but one.
    """
    rows = list(trials)
    found, mean, se = [], [], []
    for generation in generations:
        values = [t[name] for t in rows if int(t["generation"]) == generation and t.get(name) is not None]
        if values:
            found.append(generation)
            mean.append(float(np.mean(values)))
            se.append(float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan)
    return found, np.array(mean), np.array(se)

"""A study for its report: counting runs, one number a participant, and comparisons of arms if they are unsealed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rtevo.errors import DataError
from rtevo.record import RecordedSession
from rtevo.study.analysis import Analysis, Course, Effect, course, holm, randomised, summaries, trajectories
from rtevo.study.mixed import Mixed, mixed_model

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Comparison", "Group", "GroupRun", "GroupStudy", "gather_group"]

MEASURES = {"mean framewise displacement, mm": "displacement_mm", "spikes, share of volumes": "spikes"}
_SEED = 20_240_601  # seed of drawn allocations, so that the same data give the same p value


class GroupRun(Protocol):
    """One run of a study."""

    @property
    def participant(self) -> str:
        """Label."""

    @property
    def visit(self) -> str:
        """Label."""

    @property
    def run(self) -> int:
        """Number in the visit."""

    @property
    def kind(self) -> str:
        """``loop``; other kinds are ignored."""

    @property
    def folder(self) -> Path:
        """Folder of the session."""

    @property
    def status(self) -> str:
        """How it ended."""

    @property
    def counts(self) -> bool:
        """Whether the run counts."""

    @property
    def excluded(self) -> str:
        """Why it does not count; empty if it counts."""


class GroupStudy(Protocol):
    """The part of a study that the report uses."""

    @property
    def participants(self) -> Sequence[str]:
        """Labels."""

    @property
    def runs(self) -> Sequence[GroupRun]:
        """All runs."""

    @property
    def unsealed(self) -> bool:
        """Whether the arms are unsealed."""

    def arms(self) -> Mapping[str, str]:
        """Return the arm of each participant."""

    def pairs(self) -> Mapping[str, str]:
        """Return the pair or block of each participant."""

    def table(self) -> DataFrame:
        """Return a row for each image of every run."""


@dataclass(frozen=True)
class Comparison:
    """The treated arm against another.

    Parameters
    ----------
    what : str
        The quantity compared.
    treated, control : str
        The arms.
    effect : Effect
    adjusted_p : float
        Adjusted for several comparisons (Holm).
    mixed : Mixed or None
    without : str
        Why there is no mixed model; empty if there is one, or none was requested.
    """

    what: str
    treated: str
    control: str
    effect: Effect
    adjusted_p: float
    mixed: Mixed | None = None
    without: str = ""


@dataclass(frozen=True)
class Group:
    """The contents of the report.

    Parameters
    ----------
    study : GroupStudy
    analysis : Analysis
    course : Course
        Images of the counting loops.
    participants : DataFrame
        Index participant, all participants: summary, se, runs, images, true_summary; displacement_mm and spikes, means over their counting
        runs; arm and block if arms are unsealed.
    arms : mapping of str to str
        Empty while they are sealed.
    effects : tuple of Comparison
        Comparisons of the summary.
    motion : tuple of Comparison
    sessions : mapping of Path to RecordedSession
        Counting loops whose records can be read.
    """

    study: GroupStudy
    analysis: Analysis
    course: Course
    participants: DataFrame
    arms: Mapping[str, str]
    effects: tuple[Comparison, ...]
    motion: tuple[Comparison, ...]
    sessions: Mapping[Path, RecordedSession]

    @property
    def loops(self) -> list[GroupRun]:
        """The runs that count."""
        return _loops(self.study)

    @property
    def excluded(self) -> list[GroupRun]:
        """The runs that do not count."""
        return [run for run in self.study.runs if not run.counts]

    def trajectories(self) -> DataFrame:
        """Means by generation of each participant."""
        return trajectories(self.course)

    def arm_trajectories(self) -> DataFrame:
        """Means by generation of each arm; of all participants together while arms are sealed."""
        return trajectories(self.course, self.arms or dict.fromkeys(self.participants.index, "all"))


def _loops(study: GroupStudy) -> list[GroupRun]:
    return [run for run in study.runs if run.counts and run.kind == "loop"]


def gather_group(study: GroupStudy, analysis: Analysis) -> Group:
    """Return a study's analysis.

    Parameters
    ----------
    study : GroupStudy
    analysis : Analysis

    Raises
    ------
    DataError
        No run counts, or the treated arm is empty.
    """
    loops = _loops(study)
    if not loops:
        raise DataError("study: expected at least one loop that counts, found none")
    table = study.table()
    counting = {(run.participant, run.visit, str(run.run)) for run in loops}
    keys = zip(table["participant"], table["visit"], table["run"].astype(str), strict=True)
    found = course(table[[key in counting for key in keys]])
    sessions = {}
    for run in loops:
        with suppress(DataError, OSError):  # a folder was moved: its pictures and motion are missing in the report
            sessions[run.folder] = RecordedSession(run.folder)
    people = summaries(found, analysis.summary).reindex(list(study.participants))
    people = people.assign(runs=people["runs"].fillna(0).astype(int), images=people["images"].fillna(0).astype(int))
    for name, values in _motion(loops, sessions).items():
        people[name] = people.index.map(values)
    arms = dict(study.arms()) if study.unsealed else {}
    if not arms:
        return Group(study, analysis, found, people, {}, (), (), sessions)
    blocks = dict(study.pairs())
    people = people.assign(arm=people.index.map(arms), block=people.index.map(blocks))
    if analysis.treated not in arms.values():
        raise DataError(
            f"[analysis] treated: expected one of the study's arms ({', '.join(sorted(set(arms.values())))}), got {analysis.treated!r}"
        )

    def mixed(treated: Mapping[str, bool]) -> Mixed:
        return mixed_model(found.images, treated, analysis.level)

    effects = _compared(people, "summary", analysis.summary, arms, blocks, analysis, mixed)
    motion = [each for what, name in MEASURES.items() for each in _compared(people, name, what, arms, blocks, analysis)]
    return Group(study, analysis, found, people, arms, tuple(effects), tuple(motion), sessions)


def _motion(loops: Sequence[GroupRun], sessions: Mapping[Path, RecordedSession]) -> dict[str, dict[str, float]]:
    """Return each participant's means over their runs."""
    values: dict[str, dict[str, list[float]]] = {name: {} for name in MEASURES.values()}
    for run in loops:
        if run.folder not in sessions:
            continue
        summary = sessions[run.folder].summary
        quality, volumes = summary["quality"], summary["volumes"]["received"]
        displacement = (quality.get("framewise_displacement_mm") or {}).get("mean")
        shares = {"displacement_mm": displacement, "spikes": quality.get("spikes", 0) / volumes if volumes else None}
        for name, value in shares.items():
            if value is not None:
                values[name].setdefault(run.participant, []).append(float(value))
    return {name: {who: float(np.mean(own)) for who, own in found.items()} for name, found in values.items()}


def _compared(
    people: DataFrame,
    column: str,
    what: str,
    arms: Mapping[str, str],
    blocks: Mapping[str, str],
    analysis: Analysis,
    mixed: Callable[[Mapping[str, bool]], Mixed] | None = None,
) -> list[Comparison]:
    """Compare the treated arm with each of the others."""
    found = []
    for control in sorted(set(arms.values()) - {analysis.treated}):
        treated = {who: arm == analysis.treated for who, arm in arms.items() if arm in (analysis.treated, control)}
        values = {who: float(value) for who, value in people[column].items()}
        effect = randomised(values, treated, blocks, np.random.default_rng(_SEED), analysis.level)
        model, without = None, ""
        if mixed is not None:
            try:
                model = mixed({who: arm for who, arm in treated.items() if math.isfinite(values.get(who, math.nan))})
            except DataError as problem:
                without = str(problem)
        found.append(Comparison(what, analysis.treated, control, effect, math.nan, model, without))
    adjusted = holm([each.effect.p for each in found])
    return [
        Comparison(each.what, each.treated, each.control, each.effect, p, each.mixed, each.without)
        for each, p in zip(found, adjusted, strict=True)
    ]

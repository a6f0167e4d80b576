"""Number of participants and runs that a study needs, from simulated and tested whole studies: ``rtevo study plan``.

A simulated participant is one job: successive runs, in each of which evolution continues from the previous one, under brain or sham
feedback, with the participant's own contrast, lag and preference, until dropout. A study has the requested number of participants an arm,
and is tested like its report: one summary a participant, a randomisation test within the pairs (:mod:`rtevo.study.analysis`). Smaller
studies are the first participants of larger ones, and fewer runs are the first runs, so that one set of jobs serves all sizes.

Every participant has an own random stream (NumPy's ``SeedSequence``; keys study, arm, place), so neither the number of workers nor their
order changes a digit; outcomes are saved as they come.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.command import Parser, command, finite
from rtevo.errors import ConfigError
from rtevo.evolve import OF_SCORES, SCHEDULES, Feedback, Sham, create
from rtevo.evolve.jobs import add_options, client, run_all
from rtevo.evolve.rehearse import OBJECTIVES, Case, mixed, rehearse, standardised
from rtevo.progress import shown
from rtevo.study.analysis import SUMMARIES, gain, randomised, slope

__all__ = ["ARMS", "Cell", "Found", "Member", "Need", "cells", "enough", "main", "play_member"]

ARMS = ("brain", "sham")
_SHORTEST_LAG_S = 1.0
_SAMPLE = 4000  # random images that measure a map's other sensitivities


@dataclass(frozen=True)
class Member:
    """One participant of one simulated study: a job.

    Parameters
    ----------
    study, place : int
        Number of the study, and of the participant in the arm.
    arm : str
        One of ``ARMS``.
    seed : int
        Seed of the plan.
    runs, generations, population : int
        Images in a run are the product of the last two.
    strategy, schedule : str
    size : int
        Latent dimensions.
    cadence_s : float
        Time from onset to onset.
    cnr, cnr_spread : float
        Contrast-to-noise ratio of one score: median over participants, and standard deviation of its logarithm.
    lag_s, lag_spread_s : float
        Time from an onset to its score: mean over participants and standard deviation.
    quality : float
        Quality of the map, see :class:`rtevo.evolve.rehearse.Case`.
    objectives : tuple of str
        Possible preferences; each participant has one, drawn, with an own target.
    dropout : float
        Share of participants who begin a run and do not complete it; they do not return.
    summary : str
        One of :data:`rtevo.study.analysis.SUMMARIES`.
    """

    study: int
    arm: str
    place: int
    seed: int = 0
    runs: int = 1
    generations: int = 15
    population: int = 10
    strategy: str = "surrogate"
    schedule: str = "steady"
    size: int = 100
    cadence_s: float = 4.0
    cnr: float = 0.5
    cnr_spread: float = 0.5
    lag_s: float = 12.0
    lag_spread_s: float = 1.0
    quality: float = 1.0
    objectives: tuple[str, ...] = ("cosine", "multimodal", "saturating")
    dropout: float = 0.1
    summary: str = "gain"


@dataclass(frozen=True)
class Found:
    """Results of a participant.

    Parameters
    ----------
    summaries, truths : tuple of float
        After the first run, the first two, ...: the summary of the scores, in standard deviations of a score's error, and of the true
        responses, in standard deviations of random images. After a dropout, of the completed runs; NaN: none.
    ended : int
        Runs.
    own_cnr, own_lag_s : float
    """

    summaries: tuple[float, ...]
    truths: tuple[float, ...]
    ended: int
    own_cnr: float
    own_lag_s: float


def play_member(member: Member) -> Found:
    """Simulate a participant's runs in the study."""
    key = (member.study, ARMS.index(member.arm), member.place)
    seeds = np.random.SeedSequence(member.seed, spawn_key=key).spawn(5)
    traits, taste, strategy, noise, feedback = map(np.random.default_rng, seeds)
    cnr = member.cnr * math.exp(member.cnr_spread * traits.standard_normal())
    lag_s = max(_SHORTEST_LAG_S, member.lag_s + member.lag_spread_s * traits.standard_normal())
    objective = str(traits.choice(member.objectives))
    lost = traits.random(member.runs) < member.dropout
    ended = int(np.argmax(lost)) if lost.any() else member.runs
    make = OBJECTIVES[objective]
    fitness = standardised(make(member.size, taste), member.size, taste)
    other = make(member.size, taste) if member.quality < 1 else None
    seen = fitness if other is None else mixed(fitness, other, member.quality, taste.standard_normal((_SAMPLE, member.size)))
    case = Case(
        member.strategy, objective, member.generations, member.population, 1 / cnr, 0, member.schedule,
        size=member.size, cadence_s=member.cadence_s, lag_s=lag_s,
    )  # fmt: skip
    evolver = create(member.strategy, member.size, member.population, strategy)
    truth, scores = np.zeros(0), np.zeros(0)
    summarise = {"gain": gain, "slope": slope}[member.summary]
    found: list[tuple[float, float]] = []
    for run in range(member.runs):
        if run < ended:
            told = Sham(feedback) if member.arm == "sham" else Feedback()
            one, measured = rehearse(case, evolver, fitness, seen, noise, told)
            truth, scores = np.concatenate([truth, one]), np.concatenate([scores, cnr * measured])
        found.append((summarise(scores)[0], summarise(truth)[0]))
    return Found(tuple(own for own, _ in found), tuple(true for _, true in found), ended, cnr, lag_s)


# --- whole studies ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """Power with a number of participants an arm, and of runs each.

    Parameters
    ----------
    participants, runs : int
    studies, detected : int
        Simulated studies, and those whose test rejected the null hypothesis with the brain arm ahead.
    effect : float
        Mean estimate over studies, in standard deviations of a score's error.
    """

    participants: int
    runs: int
    studies: int
    detected: int
    effect: float

    @property
    def power(self) -> float:
        """Share of the studies that detected the effect."""
        return self.detected / self.studies

    @property
    def se(self) -> float:
        """Its binomial standard error."""
        return math.sqrt(self.power * (1 - self.power) / self.studies)

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% interval (E. B. Wilson 1927, J. Am. Stat. Assoc. 22:209-212, doi:10.1080/01621459.1927.10502953)."""
        from scipy.stats import binomtest

        ends = binomtest(self.detected, self.studies).proportion_ci(0.95, method="wilson")
        return float(ends.low), float(ends.high)

    @property
    def row(self) -> dict[str, float]:
        """A row of ``power.csv``."""
        low, high = self.interval
        own = {"participants": self.participants, "runs": self.runs, "power": self.power, "se": self.se}
        return {**own, "low": low, "high": high, "studies": self.studies, "effect": self.effect}


def cells(found: Mapping[tuple[int, str, int], Found], participants: Sequence[int], runs: int, level: float, seed: int) -> list[Cell]:
    """Test every study, at every number of participants and runs.

    Parameters
    ----------
    found : mapping of (int, str, int) to Found
        Results by study, arm and place.
    participants : sequence of int
        Numbers of participants an arm, none above the simulated number.
    runs : int
    level : float
        Level of the test, two-sided.
    seed : int
        Seed of the draws of allocations.
    """
    studies = sorted({study for study, _, _ in found})
    result = []
    for n in participants:
        names = {(arm, place): f"{arm} {place}" for arm in ARMS for place in range(n)}
        treated = {name: arm == ARMS[0] for (arm, _), name in names.items()}
        pairs = {name: str(place) for (_, place), name in names.items()}
        for run in range(runs):
            effects = [
                randomised(
                    {name: found[study, arm, place].summaries[run] for (arm, place), name in names.items()},
                    treated, pairs, np.random.default_rng([seed, study, n, run]), level,
                )
                for study in studies
            ]  # fmt: skip
            detected = sum(effect.p <= level and effect.estimate > 0 for effect in effects)
            estimates = [effect.estimate for effect in effects if math.isfinite(effect.estimate)]
            result.append(Cell(n, run + 1, len(studies), detected, float(np.mean(estimates)) if estimates else math.nan))
    return result


@dataclass(frozen=True)
class Need:
    """Participants an arm that a number of runs needs; None if no tested number is enough.

    Parameters
    ----------
    runs : int
    participants : int or None
        The smallest number with the requested power.
    low, high : int or None
        The smallest numbers whose power may reach it, and surely reaches it, by the 95% interval of the power.
    """

    runs: int
    participants: int | None
    low: int | None
    high: int | None


def enough(found: Sequence[Cell], power: float) -> list[Need]:
    """Return the participants that each number of runs needs."""

    def fewest(own: Sequence[Cell], values: Sequence[float]) -> int | None:
        return min((cell.participants for cell, value in zip(own, values, strict=True) if value >= power), default=None)

    needs = []
    for runs in sorted({cell.runs for cell in found}):
        own = [cell for cell in found if cell.runs == runs]
        low, high = zip(*(cell.interval for cell in own), strict=True)
        needs.append(Need(runs, fewest(own, [cell.power for cell in own]), fewest(own, high), fewest(own, low)))
    return needs


# --- the command line ---------------------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = Parser(
        prog="python -m rtevo.study plan",
        description="Simulate whole studies, participant by participant, test them like the report, and print how many participants and "
        "runs are enough. Results are kept in the folder and not simulated again; smaller numbers are part of larger ones.",
    )
    p.add_argument("--minutes", type=finite, required=True, metavar="M", help="scan time of a run")
    p.add_argument("--cnr", type=finite, required=True, metavar="X", help="contrast-to-noise ratio of one score: median over participants")
    p.add_argument("--cnr-spread", type=finite, default=0.5, metavar="S", help="standard deviation of its logarithm (default 0.5)")
    p.add_argument(
        "--participants",
        type=int,
        nargs="+",
        default=[6, 8, 10, 12, 16, 20, 24],
        metavar="N",
        help="participants an arm (default: 6 to 24)",
    )
    p.add_argument("--runs", type=int, default=3, metavar="N", help="most runs of a participant; fewer are tested too (default 3)")
    p.add_argument(
        "--dropout",
        type=finite,
        default=0.1,
        metavar="P",
        help="share of participants who begin a run and do not complete it (default 0.1)",
    )
    p.add_argument("--lag", type=finite, default=12.0, metavar="S", help="seconds from an onset to its score: mean (default 12)")
    p.add_argument("--lag-spread", type=finite, default=1.0, metavar="S", help="its standard deviation over participants (default 1)")
    p.add_argument("--cadence", type=finite, default=4.0, metavar="S", help="seconds from onset to onset (default 4)")
    p.add_argument("--quality", type=finite, default=1.0, metavar="R", help="correlation of the map's measure with the target")
    p.add_argument("--size", type=int, default=100, metavar="D", help="latent dimensions (default 100)")
    p.add_argument("--population", type=int, default=10, metavar="N", help="images in a generation (default 10)")
    p.add_argument("--strategy", default="surrogate", choices=list(OF_SCORES))
    p.add_argument("--schedule", default=SCHEDULES[0], choices=SCHEDULES)
    p.add_argument(
        "--objectives",
        nargs="+",
        default=["cosine", "multimodal", "saturating"],
        choices=list(OBJECTIVES),
        help="possible preferences of participants",
    )
    p.add_argument("--summary", default=SUMMARIES[0], choices=SUMMARIES, help="one number a participant, fixed before the study")
    p.add_argument("--studies", type=int, default=100, metavar="N", help="simulated studies (default 100: power to ±0.04)")
    p.add_argument("--power", type=finite, default=0.8, metavar="P", help="sufficient power (default 0.8)")
    p.add_argument("--level", type=finite, default=0.05, metavar="P", help="level of the test, two-sided (default 0.05)")
    p.add_argument("--seed", type=int, default=0, metavar="N")
    p.add_argument(
        "--out", type=Path, default=Path("study-plan"), metavar="DIR", help="folder for participants.jsonl, power.csv, power.png"
    )
    add_options(p)
    return p


def _first(options: argparse.Namespace) -> Member:
    """Check the options; return the first participant."""
    wrong = [
        f"--{name}: expected > 0, got {getattr(options, name):g}"
        for name in ("minutes", "cnr", "cadence")
        if not getattr(options, name) > 0
    ]
    low = (("cnr_spread", 0), ("lag_spread", 0), ("lag", 0), ("seed", 0), ("runs", 1), ("studies", 2), ("size", 2), ("population", 1))
    wrong += [
        f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(options, name):g}"
        for name, least in low
        if getattr(options, name) < least
    ]
    shares = (
        ("dropout", 0 <= options.dropout < 1),
        ("quality", 0 < options.quality <= 1),
        ("power", 0 < options.power < 1),
        ("level", 0 < options.level < 1),
    )
    wrong += [f"--{name}: expected a share between 0 and 1, got {getattr(options, name):g}" for name, right in shares if not right]
    if min(options.participants) < 2:
        wrong.append(f"--participants: expected at least 2 an arm, got {min(options.participants)}")
    if wrong:
        raise ConfigError(wrong)
    generations = int(60 * options.minutes / options.cadence / options.population)
    if generations < 3:
        raise ConfigError(
            f"--minutes {options.minutes:g}: expected time for three generations of {options.population} images, found {generations}"
        )
    return Member(
        0, ARMS[0], 0, options.seed, options.runs, generations, options.population, options.strategy, options.schedule, options.size,
        options.cadence, options.cnr, options.cnr_spread, options.lag, options.lag_spread, options.quality, tuple(options.objectives),
        options.dropout, options.summary,
    )  # fmt: skip


def _table(found: Sequence[Cell]) -> Any:
    """Return the table of power: a row for each number of participants, a column for each number of runs."""
    from rich.table import Table

    table = Table(title="Power with its 95% interval", title_justify="left", box=None, padding=(0, 2, 0, 0))
    runs = sorted({cell.runs for cell in found})
    for name in ("participants an arm", *map(_runs, runs)):
        table.add_column(name, justify="right")
    for n in sorted({cell.participants for cell in found}):
        own = {cell.runs: cell for cell in found if cell.participants == n}
        table.add_row(str(n), *("{:.2f} ({:.2f} to {:.2f})".format(own[run].power, *own[run].interval) for run in runs))
    return table


def _said(need: Need, power: float, most: int) -> str:
    """Return a sentence about the participants that a number of runs needs."""
    runs = f"{_runs(need.runs)} a participant"
    if need.participants is None:
        return f"{runs}: {most} participants an arm are not enough for {power:.0%} power"
    high = f"{need.high}" if need.high is not None else f"more than {most}"
    between = f" ({need.low} to {high}, 95% interval)" if (need.low, need.high) != (need.participants, need.participants) else ""
    return f"{runs}: {need.participants} participants an arm{between} give {power:.0%} power"


def _draw(found: Sequence[Cell], power: float, target: Path) -> None:
    """Draw power over participants, a line for each number of runs."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from rtevo.report.figures import ACCENT, CONTROL, MUTED, SECOND, STYLE

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), dpi=150, layout="constrained")
        ax = figure.add_subplot()
        colors = (ACCENT, SECOND, *CONTROL)
        for k, runs in enumerate(sorted({cell.runs for cell in found})):
            own = sorted((cell for cell in found if cell.runs == runs), key=lambda cell: cell.participants)
            ends = np.array([cell.interval for cell in own]).T
            values = np.array([cell.power for cell in own])
            where = np.array([cell.participants for cell in own]) + 0.12 * k
            label = _runs(runs)
            ax.errorbar(
                where,
                values,
                np.maximum(np.abs(ends - values), 0),
                fmt="-o",
                color=colors[k % len(colors)],
                markersize=4,
                capsize=2.5,
                label=label,
            )
        ax.axhline(power, color=MUTED, linestyle="--", linewidth=0.9)
        ax.set(xlabel="participants an arm", ylabel="power", ylim=(0, 1.02), xticks=sorted({cell.participants for cell in found}))
        ax.set_title(f"Power with its 95% interval ({found[0].studies} simulated studies; dashed: {power:.0%})")
        ax.legend(loc="lower right")
        figure.savefig(target)


def _simulated(first: Member, options: argparse.Namespace) -> dict[tuple[int, str, int], Found]:
    """Simulate all participants of all studies, except those with saved results."""
    places = range(max(options.participants))
    members = [replace(first, study=study, arm=arm, place=place) for study in range(options.studies) for place in places for arm in ARMS]
    options.out.mkdir(parents=True, exist_ok=True)
    keep = options.keep or options.out / "participants.jsonl"
    with client(options) as where, shown() as progress:
        outcomes = run_all(members, play_member, Member, Found, where, keep, partial(progress, "simulated participants"))
    return {(m.study, m.arm, m.place): outcome for m, outcome in zip(members, outcomes, strict=True)}


def _what(first: Member, studies: int, found: Mapping[tuple[int, str, int], Found]) -> str:
    """Return a sentence about the simulation and its true gains."""
    truths = {arm: [own.truths[-1] for (_, its, _), own in found.items() if its == arm and own.ended] for arm in ARMS}
    gains = " and ".join(f"{np.mean(own):.2f} ± {np.std(own):.2f} under {arm}" for arm, own in truths.items() if own)
    return (
        f"{studies} studies; {first.generations * first.population} images a run, an image every {first.cadence_s:g} s, CNR {first.cnr:g}; "
        f"true {first.summary} of {_runs(first.runs)}: {gains} (mean ± SD over participants, in SD of random images)."
    )


def _runs(n: int) -> str:
    return f"{n} run{'s' if n > 1 else ''}"


def plan(options: argparse.Namespace) -> None:
    """Simulate, test, and print the sufficient numbers."""
    from pandas import DataFrame
    from rich.console import Console

    first, numbers = _first(options), sorted(set(options.participants))
    found = _simulated(first, options)
    result = cells(found, numbers, first.runs, options.level, options.seed)
    DataFrame([cell.row for cell in result]).to_csv(options.out / "power.csv", index=False)
    _draw(result, options.power, options.out / "power.png")
    console = Console(highlight=False, width=100)
    console.print(_table(result))
    console.print(f"\n{_what(first, options.studies, found)}")
    for need in enough(result, options.power):
        console.print(_said(need, options.power, numbers[-1]))
    print(options.out / "power.csv", options.out / "power.png", sep="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    options = parser().parse_args(arguments)
    return command(lambda: plan(options))


if __name__ == "__main__":
    sys.exit(main())

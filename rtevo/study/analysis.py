"""Analysis of a study: one summary a participant, and a randomisation test of it over the allocations that could have been drawn.

The test uses the draw itself: if chance had allotted the arms differently within the same pairs or blocks, how often would the difference
be as large? It assumes nothing about the scores' distribution, nor that participants are alike, so its false-positive rate holds for eight
participants an arm as for eighty (R. A. Fisher 1935, The Design of Experiments; E. S. Edgington and P. Onghena 2007, Randomization Tests).

The summary of a participant is fixed before the study (:class:`Analysis`). Scores of different runs share no zero, because the decoder sets
it in each run. Images that were shown in several runs (probes) anchor the runs to each other; without probes only changes within runs are
identified.

This module reads no files: tables in, results out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtevo.config.keys import key, one_of

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "SUMMARIES",
    "Analysis",
    "Course",
    "Effect",
    "course",
    "gain",
    "holm",
    "randomised",
    "slope",
    "summaries",
    "trajectories",
]

Array = NDArray[np.float64]
SUMMARIES = ("gain", "slope")
MOST, DRAWS = 20_000, 9_999  # up to MOST allocations are all used; of more, DRAWS are drawn
_PARTS = 3  # a gain is the mean of the last third less that of the first
_SAME = 1e-9  # relative difference below which statistics are equal


@dataclass(frozen=True)
class Analysis:
    """The summary and its test, fixed before the first participant."""

    summary: str = key(
        "gain",
        "one number a participant: gain (mean score of the last third of the images less that of the first), slope (rise of a line "
        "through the scores from the first image to the last)",
        **one_of(*SUMMARIES),
    )
    treated: str = key("brain", "the arm that each of the others is compared with", "an arm", bool)
    level: float = key(0.05, "of the tests, two-sided; intervals hold the rest", "> 0 and < 1", lambda x: 0 < x < 1)


# --- one number a participant ------------------------------------------------------------------------------------------------------------


def gain(scores: Array) -> tuple[float, float]:
    """Return the mean of the last third of scores less that of the first, and its standard error.

    Parameters
    ----------
    scores : ndarray, float64 (n,)
        In the order of presentation.

    Returns
    -------
    gain, se : float
        NaN for fewer than three scores; the error, from the spread within the thirds, for fewer than six.
    """
    k = len(scores) // _PARTS
    if not k:
        return math.nan, math.nan
    first, last = scores[:k], scores[-k:]
    se = math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / k) if k > 1 else math.nan
    return float(last.mean() - first.mean()), se


def slope(scores: Array) -> tuple[float, float]:
    """Return the rise of a line through the scores from the first image to the last, and its standard error.

    Parameters
    ----------
    scores : ndarray, float64 (n,)
        In the order of presentation.

    Returns
    -------
    slope, se : float
        NaN for fewer than three scores.
    """
    n = len(scores)
    if n < 3:
        return math.nan, math.nan
    x = np.linspace(-0.5, 0.5, n)
    rise = float(x @ scores / (x @ x))
    left = scores - scores.mean() - rise * x
    return rise, math.sqrt(float(left @ left) / (n - 2) / float(x @ x))


_HOW = {"gain": gain, "slope": slope}


@dataclass(frozen=True)
class Course:
    """Images of all counting runs, in their order.

    Parameters
    ----------
    images : DataFrame
        A row for each scored image that evolution requested: participant, visit, run, generation, score, se (original, on their run's own
        zero), true_response; `step`: generation counted through the participant's runs, from 0; `progress`: 0 at a participant's first
        image to 1 at the last; `level`: the score on the zero of the participant's first run if runs are anchored, else relative to its
        run's mean.
    anchored : bool
        Scores of different runs can be compared: each participant has one run, or probes connect all of the participant's runs.
    loose : tuple of str
        Participants with several runs that probes do not connect.
    """

    images: DataFrame
    anchored: bool
    loose: tuple[str, ...]


def course(table: DataFrame) -> Course:
    """Order the images of a study's table, and bring the runs of each participant to one zero if possible.

    Parameters
    ----------
    table : DataFrame
        A row for each image of the loop's runs, in the order of presentation within a run: participant, visit, run, generation, score,
        se, probe (missing: requested by evolution), counts; true_response if known.
    """
    rows = table[table["counts"].astype(bool) & table["score"].notna()].sort_values(["participant", "visit", "run"], kind="stable")
    rows = rows.assign(offset=0.0, key=rows["visit"].astype(str) + "/" + rows["run"].astype(str))
    loose = []
    for participant, own in rows.groupby("participant", sort=False):
        found = _offsets(own)
        if found is None:
            loose.append(str(participant))
        else:
            rows.loc[own.index, "offset"] = own["key"].map(found)
    images = rows[rows["probe"].isna()].copy()
    images["level"] = images["score"] - images["offset"]
    by_participant = images.groupby("participant", sort=False)
    first = by_participant["level"].transform(lambda own: own.iloc[: max(1, len(own) // _PARTS)].mean())
    images["level"] -= images.groupby(["participant", "key"])["level"].transform("mean") if loose else first
    images["step"] = _dense(list(zip(images["participant"], images["key"], images["generation"], strict=True)))
    images["progress"] = by_participant.cumcount() / np.maximum(by_participant["score"].transform("size") - 1, 1)
    return Course(images.drop(columns=["offset"]).reset_index(drop=True), not loose, tuple(loose))


def _dense(keys: Sequence[tuple[Any, ...]]) -> list[int]:
    """Number different values, for each participant from 0, in order of appearance."""
    seen: dict[Any, dict[Any, int]] = {}
    numbers = []
    for participant, *rest in keys:
        own = seen.setdefault(participant, {})
        numbers.append(own.setdefault(tuple(rest), len(own)))
    return numbers


def _offsets(own: DataFrame) -> dict[Any, float] | None:
    """Return the zero of each of a participant's runs relative to the first's, from their probes; None if these do not connect the runs."""
    runs = list(dict.fromkeys(own["key"]))
    if len(runs) == 1:
        return {runs[0]: 0.0}
    shown = own[own["probe"].notna()]
    probes = sorted(set(shown["probe"]))
    row = np.arange(len(shown))
    design = np.zeros((len(shown), len(probes) + len(runs)))
    design[row, [probes.index(probe) for probe in shown["probe"]]] = 1
    design[row, [len(probes) + runs.index(run) for run in shown["key"]]] = 1
    design = np.delete(design, len(probes), axis=1)  # the first run defines the zero
    if len(shown) < design.shape[1] or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    found = np.linalg.lstsq(design, shown["score"].to_numpy(np.float64), rcond=None)[0][len(probes) :]
    return {runs[0]: 0.0} | {run: float(offset) for run, offset in zip(runs[1:], found, strict=True)}


def summaries(found: Course, how: str) -> DataFrame:
    """Return one number a participant.

    If runs are anchored, the summary is of all images of the participant together; if not, it is the mean of the summaries within runs, for
    all participants.

    Parameters
    ----------
    found : Course
    how : str
        One of ``SUMMARIES``.

    Returns
    -------
    DataFrame
        Index participant; summary, se, runs, images, and true_summary: the summary of a simulated participant's true responses, NaN for
        real participants.
    """
    import pandas as pd

    rows = []
    for participant, own in found.images.groupby("participant", sort=True):
        parts = [own] if found.anchored else [part for _, part in own.groupby("key", sort=False)]
        value, se = np.array([_HOW[how](part["level"].to_numpy(np.float64)) for part in parts]).T
        truth = [_HOW[how](part["true_response"].to_numpy(np.float64))[0] for part in parts] if "true_response" in own else [math.nan]
        rows.append(
            {
                "participant": str(participant),
                "summary": float(value.mean()),
                "se": float(np.sqrt((se**2).sum()) / len(se)),
                "runs": own["key"].nunique(),
                "images": len(own),
                "true_summary": float(np.mean(truth)),
            }
        )
    return pd.DataFrame(rows, columns=["participant", "summary", "se", "runs", "images", "true_summary"]).set_index("participant")


def trajectories(found: Course, arms: Mapping[str, str] | None = None) -> DataFrame:
    """Return means by generation.

    Parameters
    ----------
    found : Course
    arms : mapping of str to str, optional
        Arm of each participant: returns means over an arm's participants instead, with equal weights.

    Returns
    -------
    DataFrame
        who (participant or arm), step (generation, counted through the runs), mean and se of `level`, n (images or participants).
    """
    each = found.images.groupby(["participant", "step"], sort=True)["level"].agg(["mean", "sem", "size"]).reset_index()
    if arms is not None:
        each["arm"] = each["participant"].map(arms)
        each = each.groupby(["arm", "step"], sort=True)["mean"].agg(["mean", "sem", "size"]).reset_index()
    each.columns = ["who", "step", "mean", "se", "n"]
    return each


# --- the test ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """One arm against another.

    Parameters
    ----------
    estimate, low, high : float
        Treated less control, mean over pairs or blocks, and its interval; infinite if too few allocations bound it.
    p : float
        Two-sided; twice the smaller tail.
    smallest_p : float
        The smallest p value that this allocation could have given.
    allocations : int
        Number of allocations compared, including the actual one.
    exact : bool
        These are all possible allocations, not a sample.
    treated, control : int
        Numbers of participants compared.
    alone : tuple of str
        Participants whose pair or block has no participant left in the other arm; they are not used.
    """

    estimate: float
    low: float
    high: float
    p: float
    smallest_p: float
    allocations: int
    exact: bool
    treated: int
    control: int
    alone: tuple[str, ...] = ()


def randomised(
    values: Mapping[str, float],
    treated: Mapping[str, bool],
    blocks: Mapping[str, str],
    rng: np.random.Generator,
    level: float = 0.05,
) -> Effect:
    """Compare two arms by a randomisation test, and invert it for the interval.

    The statistic is the difference of the arms' means within each block, averaged over blocks with weights ``n1 n0 / (n1 + n0)``. For a
    shift by d of the treated it is linear in d for every allocation, so each has one d at which it passes the observed one, and the
    interval's ends are order statistics of these (P. H. Garthwaite 1996, Biometrics 52:1387, doi:10.2307/2532852, searches for them).

    Parameters
    ----------
    values : mapping of str to float
        Summary of each participant; NaN is left out.
    treated : mapping of str to bool
        Whether each participant is treated.
    blocks : mapping of str to str
        Pair or block within which arms were drawn; all other participants form one block.
    rng : numpy.random.Generator
        Draws allocations if there are too many.
    level : float
        The interval holds 1 - level.
    """
    names = [name for name, value in values.items() if name in treated and math.isfinite(value)]
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(blocks.get(name, ""), []).append(name)
    both = {block: own for block, own in members.items() if len({treated[name] for name in own}) == 2}
    kept = [name for own in both.values() for name in own]
    alone = tuple(sorted(set(names) - set(kept)))
    if not kept:
        return Effect(math.nan, -math.inf, math.inf, math.nan, math.nan, 0, True, 0, 0, alone)
    y, arm = np.array([values[name] for name in kept]), np.array([treated[name] for name in kept], bool)
    sizes = [len(own) for own in both.values()]
    drawn, exact = allocations(arm, sizes, rng)
    estimate, own, shift = _statistics(y, arm, sizes, drawn)
    return Effect(
        estimate,
        *_interval(estimate, own, shift, level),
        *_tails(estimate, own),
        len(drawn),
        exact,
        int(arm.sum()),
        int((~arm).sum()),
        alone,
    )


def allocations(arm: NDArray[np.bool_], sizes: Sequence[int], rng: np.random.Generator) -> tuple[NDArray[np.bool_], bool]:
    """Return the allocations that the design permits: with the same number of treated in each block.

    Parameters
    ----------
    arm : ndarray, bool (n,)
        Who is treated, block after block.
    sizes : sequence of int
        Sizes of the blocks.
    rng : numpy.random.Generator

    Returns
    -------
    drawn : ndarray, bool (k, n)
        All of them; of more than 20,000, the given one and 9,999 drawn ones.
    exact : bool
        These are all.
    """
    ends = np.cumsum(sizes)
    counts = [int(arm[end - size : end].sum()) for end, size in zip(ends, sizes, strict=True)]
    if math.prod(math.comb(size, count) for size, count in zip(sizes, counts, strict=True)) > MOST:
        block = np.repeat(np.arange(len(sizes)), sizes)
        order = np.argsort(block + rng.random((DRAWS, len(arm))), axis=1)  # a permutation within each block
        return np.concatenate([arm[np.newaxis], arm[order]]), False
    return _every(tuple(sizes), tuple(counts)), True


@lru_cache(maxsize=16)  # simulations use the same few designs repeatedly
def _every(sizes: tuple[int, ...], counts: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return every allocation with these numbers of treated in blocks of these sizes."""
    found = np.zeros((1, 0), bool)
    for size, count in zip(sizes, counts, strict=True):
        chosen = np.array(list(itertools.combinations(range(size), count)), np.intp).reshape(-1, count)
        own = np.zeros((len(chosen), size), bool)
        own[np.arange(len(chosen))[:, np.newaxis], chosen] = True
        found = np.concatenate([np.repeat(found, len(own), axis=0), np.tile(own, (len(found), 1))], axis=1)
    found.flags.writeable = False
    return found


def _statistics(y: Array, arm: NDArray[np.bool_], sizes: Sequence[int], drawn: NDArray[np.bool_]) -> tuple[float, Array, Array]:
    """Return the observed statistic, every allocation's, and the fraction of a shift of the treated that appears in each."""
    block = np.repeat(np.arange(len(sizes)), sizes)
    ones = np.bincount(block, arm)
    zeros = np.asarray(sizes) - ones
    weight = ones * zeros / (ones + zeros)
    weight /= weight.sum()
    up, down = (weight / ones)[block], (weight / zeros)[block]
    centred = y - (np.bincount(block, y) / sizes)[block]  # differences between blocks would cost digits
    seen = drawn @ np.column_stack([(up + down) * centred, (up + down) * arm]) - np.array([down @ centred, down @ arm])
    return float(np.where(arm, up, -down) @ centred), seen[:, 0], seen[:, 1]


def _tails(estimate: float, own: Array) -> tuple[float, float]:
    """Return the two-sided p value and the smallest possible one; ties count for both tails."""
    near = _SAME * max(float(np.abs(own).max()), abs(estimate))
    smaller = min(int((own >= estimate - near).sum()), int((own <= estimate + near).sum()))
    return min(1.0, 2 * smaller / len(own)), min(1.0, 2 / len(own))


def _interval(estimate: float, own: Array, shift: Array, level: float) -> tuple[float, float]:
    """Return all shifts that the test would not reject: a shift is rejected if a tail has no more than half the level."""
    same = shift > 1 - _SAME  # shows the whole shift, like the observed one, which it therefore never passes
    passes = np.sort((estimate - own[~same]) / (1 - shift[~same]))
    spare = math.floor(level / 2 * len(own) + _SAME) - int(same.sum())  # that may lie beyond an end
    if spare < 0 or spare >= len(passes):
        return -math.inf, math.inf
    return float(passes[spare]), float(passes[-1 - spare])


def holm(p: Sequence[float]) -> list[float]:
    """Return p values of several comparisons, adjusted so that the level holds for any false finding among all.

    S. Holm 1979, Scandinavian Journal of Statistics 6:65-70.

    Parameters
    ----------
    p : sequence of float
    """
    adjusted, largest = list(p), 0.0
    for k, index in enumerate(sorted(range(len(p)), key=lambda j: p[j])):
        largest = max(largest, min(1.0, (len(p) - k) * p[index]))
        adjusted[index] = largest
    return adjusted

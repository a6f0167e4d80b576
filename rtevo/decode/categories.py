"""Categories that are decoded in training runs, and their blocks and folds for cross-validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.events import Event, Target, blocks, predicted
from rtevo.errors import DataError

__all__ = ["MOST_FOLDS", "Block", "Categories", "Fold", "categories_of", "folds_of", "halves_of"]

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
PURGE_S = 16.0
"""Volumes closer than this before or after a tested block are left out of the fit: the response to one reaches into the other."""
GAP_S = 4.0
"""Gap between the two parts of a block, where no block can be held out."""
MOST_FOLDS, MOST_SINGLE = 5, 24
_SHOWN_S = 4.0, 6.0  # a block is read from so long after its start until so long after its end
_FEWEST = 10  # volumes in a fit


@dataclass(frozen=True)
class Block:
    """A stretch of one category: its run and category, the volumes that show it, in two parts as well, and what is too near to each."""

    run: int
    kind: int
    start_s: float
    shown: Flags
    parts: tuple[Flags, Flags]
    guards: tuple[Flags, Flags]
    near: Flags
    value: float = 1.0


@dataclass(frozen=True, eq=False)
class Categories:
    """The categories to be decoded, on the volumes of all runs.

    Parameters
    ----------
    names : tuple of str
        Of the maps, one a category; for a target one name, of the map of its first side.
    design : ndarray, float64 (n, K)
        Predicted response to each category; of a numeric target one column.
    blocks : tuple of Block
        In order of time.
    numeric : bool
        Whether it is a numeric target.
    """

    names: tuple[str, ...]
    design: Array
    blocks: tuple[Block, ...]
    numeric: bool = False

    def relabelled(self, order: NDArray[np.int64], parts: Array) -> Categories:
        """Return the categories with the blocks' labels in another order; `parts` are the blocks' own responses, (n, blocks)."""
        kinds = [self.blocks[k].kind for k in order]
        values = [self.blocks[k].value for k in order]
        design = np.zeros_like(self.design)
        for column, (kind, value) in enumerate(zip(kinds, values, strict=True)):
            design[:, kind] += value * parts[:, column]
        made = [replace(b, kind=kind, value=value) for b, kind, value in zip(self.blocks, kinds, values, strict=True)]
        return Categories(self.names, design, tuple(made), self.numeric)


def categories_of(
    events: Sequence[Sequence[Event]], times_s: Array, run: NDArray[np.int64], targets: Sequence[Target] | None = None
) -> tuple[Categories, Array]:
    """Return the categories to be decoded: all kinds of event, or the two sides of a target.

    Parameters
    ----------
    events : sequence of sequence of Event
        Of each run.
    times_s : ndarray, float64 (n,)
        Middles of the volumes, from the start of their run.
    run : ndarray, int (n,)
        Which run.
    targets : sequence of Target, optional
        Of each run; None: every kind of event is a category.

    Returns
    -------
    categories : Categories
    parts : ndarray, float64 (n, blocks)
        Predicted response to each block.

    Raises
    ------
    DataError
        There are fewer than two kinds of event.
    """
    kinds = sorted({event.trial_type for part in events for event in part if event.trial_type})
    numeric = targets is not None and not targets[0].categorical
    if targets is None and len(kinds) < 2:
        there = ", ".join(kinds) or "none"
        raise DataError(f"events: expected at least two kinds (trial_type) to tell apart, found {there}; --target reads a numeric column")
    made, columns = [], []
    for number, part in enumerate(events):
        if targets is None:
            values = np.array([kinds.index(event.trial_type) if event.trial_type else math.nan for event in part])
        else:
            values = targets[number].coefficients
        for group in blocks(part, values):
            value = float(values[group[0]])
            kind = 0 if numeric else int(value) if targets is None else int(value < 0)
            chosen = [part[k] for k in group]
            made.append(_block(chosen, number, kind, times_s, run, value if numeric else 1.0))
            column = np.zeros(len(times_s))
            column[run == number] = predicted(times_s[run == number], chosen, np.ones(len(chosen)))
            columns.append(column)
    count = 1 if numeric else len(kinds) if targets is None else 2
    parts = np.array(columns).T.reshape(len(times_s), len(made))
    design = np.zeros((len(times_s), count))
    for block, column in zip(made, parts.T, strict=True):
        design[:, block.kind] += block.value * column
    names = tuple(kinds) if targets is None else (targets[0].text,)
    return Categories(names, design, tuple(made), numeric), parts


def _block(events: Sequence[Event], number: int, kind: int, times_s: Array, run: NDArray[np.int64], value: float) -> Block:
    """Return a block with the volumes that show it."""
    start, end = events[0].onset_s, max(event.onset_s + event.duration_s for event in events)
    here = run == number
    shown = here & (times_s >= start + _SHOWN_S[0]) & (times_s <= end + _SHOWN_S[1])
    middle = 0.5 * (start + _SHOWN_S[0] + end + _SHOWN_S[1])
    parts = shown & (times_s <= middle - 0.5 * GAP_S), shown & (times_s >= middle + 0.5 * GAP_S)
    guards = here & (times_s < middle + 0.5 * GAP_S), here & (times_s > middle - 0.5 * GAP_S)
    around = here & (times_s > start + _SHOWN_S[0] - GAP_S) & (times_s < end + _SHOWN_S[1] + GAP_S)
    near = here & (times_s > start - PURGE_S) & (times_s < end + PURGE_S)
    return Block(number, kind, start, shown, parts, (guards[0] & around, guards[1] & around), near, value)


@dataclass(frozen=True, eq=False)
class Fold:
    """Volumes that a fit may see, and what it is then tested on: (block, volumes) each."""

    train: Flags
    tested: tuple[tuple[int, Flags], ...]


def folds_of(categories: Categories, chosen: Sequence[int], allowed: Flags) -> list[Fold]:
    """Deal blocks into stretches that are held out together; empty where no block can be held out.

    Blocks of a fold follow each other, so that little is lost around them. Of several divisions the finest one is taken (at most five) that
    leaves blocks of every category to each fit; where none does, each category's blocks are dealt out in turn, or held out one by one.
    """
    kinds = np.array([categories.blocks[k].kind for k in chosen])
    values = np.array([categories.blocks[k].value for k in chosen])
    wanted = np.unique(kinds)
    most = len(chosen) // 2 if categories.numeric else min((int((kinds == kind).sum()) for kind in wanted), default=0)
    if not categories.numeric and len(wanted) < categories.design.shape[1]:
        return []
    order = sorted(range(len(chosen)), key=lambda k: (categories.blocks[chosen[k]].run, categories.blocks[chosen[k]].start_s))
    counts = range(min(most, MOST_FOLDS), 1, -1)
    stretches = [np.array_split(np.array(order), count) for count in counts]
    dealt = [_dealt(kinds[order], np.array(order), count) for count in counts]
    single = [[np.array([k]) for k in order]] if most > 1 and len(order) <= MOST_SINGLE else []
    for division in (*stretches, *dealt, *single):
        made = []
        for part in division:
            tested = [chosen[k] for k in part]
            train = allowed & ~np.any([categories.blocks[k].near for k in tested], axis=0)
            others = [k for k in range(len(chosen)) if k not in set(part.tolist())]
            left = [k for k in others if (categories.blocks[chosen[k]].shown & train).sum() >= 2]
            enough = len({values[k] for k in left}) > 2 if categories.numeric else {int(kinds[k]) for k in left} == set(wanted.tolist())
            if train.sum() < _FEWEST or not enough:
                break
            made.append(Fold(train, tuple((k, categories.blocks[k].shown & allowed) for k in tested)))
        else:
            return made
    return []


def _dealt(kinds: NDArray[np.int64], order: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """Deal each category's blocks out in turn."""
    folds = np.zeros(len(order), np.int64)
    for kind in np.unique(kinds):
        folds[kinds == kind] = np.arange((kinds == kind).sum()) % count
    return [order[folds == fold] for fold in range(count)]


def halves_of(categories: Categories) -> list[Fold]:
    """Folds of parts of blocks: each part is tested by a fit without it and the gap; a weak test, as slow noise is shared."""
    everything = np.ones(len(categories.design), bool)
    folds = []
    for part in (0, 1):
        tested = tuple((k, block.parts[part]) for k, block in enumerate(categories.blocks) if block.parts[part].any())
        train = everything & ~np.any([block.guards[part] for block in categories.blocks], axis=0)
        if tested and train.sum() >= _FEWEST:
            folds.append(Fold(train, tested))
    return folds

"""The schedule: pictures, durations and fixations, all fixed before the first volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rtevo.config import Localizer
from rtevo.errors import ConfigError
from rtevo.localizer.order import balanced
from rtevo.localizer.pictures import Picture

__all__ = ["TAIL_S", "Trial", "length_s", "make_schedule"]

TAIL_S = 12.0
"""Shortest fixation after the last picture, s: its response is measured too."""


@dataclass(frozen=True)
class Trial:
    """One picture of the schedule. In the log it is the image of generation `block` and candidate `place`.

    Parameters
    ----------
    block, place : int
        Number of the block, and of the picture in it, 0 = first. Single pictures are blocks of one (of two, if the picture is repeated).
    category, file : str
        Subfolder and name of the picture.
    sha256 : str
        Digest of the picture's file.
    image_s, washout_s : float
        Duration of the picture, and of the fixation after it, s.
    target : bool
        A target to answer: a repetition of the previous picture, or a picture with a dot.
    """

    block: int
    place: int
    category: str
    file: str
    sha256: str
    image_s: float
    washout_s: float
    target: bool = False

    @property
    def key(self) -> tuple[int, int]:
        """Generation and candidate."""
        return self.block, self.place

    @property
    def name(self) -> str:
        """``category/file``."""
        return f"{self.category}/{self.file}"

    def fields(self) -> dict[str, Any]:
        """Return the trial as plain values, for the log."""
        return asdict(self)


class _Deck:
    """Pictures of one category, drawn without repetition until all have been drawn."""

    def __init__(self, pictures: Sequence[Picture], rng: np.random.Generator) -> None:
        self._all, self._rng = list(pictures), rng
        self._left: list[Picture] = []
        self._last: Picture | None = None

    def draw(self, count: int) -> list[Picture]:
        """Draw different pictures; the first is not the last one drawn before."""
        drawn: list[Picture] = []
        while len(drawn) < count:
            if (found := self._next(drawn)) is None:
                self._left += [self._all[k] for k in self._rng.permutation(len(self._all)) if self._all[k] not in self._left]
                found = self._next(drawn)
            assert found is not None  # there are at least `count` and at least two
            self._left.remove(found)
            drawn.append(found)
            self._last = found
        return drawn

    def _next(self, drawn: Sequence[Picture]) -> Picture | None:
        return next((picture for picture in self._left if picture not in drawn and picture != self._last), None)


def make_schedule(settings: Localizer, categories: Mapping[str, Sequence[Picture]], rng: np.random.Generator) -> tuple[Trial, ...]:
    """Make the schedule of a run.

    Parameters
    ----------
    settings : Localizer
    categories : mapping of str to sequence of Picture
    rng : numpy.random.Generator

    Returns
    -------
    tuple of Trial
        In the order of presentation.

    Raises
    ------
    ConfigError
        A category has too few pictures for a block.
    """
    names = list(categories)
    events = settings.design == "events"
    size = 1 if events else settings.block_images
    needed = 2 if events else size
    if few := [f"{name} {len(categories[name])}" for name in names if len(categories[name]) < needed]:
        raise ConfigError(
            f"[localizer] folder: expected at least {needed} pictures in each category, because no picture is in a block twice, found: "
            f"{', '.join(few)} (add pictures{'' if events else ', or fewer [localizer] block_images'})"
        )
    rounds = settings.repetitions * (settings.block_images if events else 1)
    order = [names[k] for row in balanced(len(names), rounds, rng) for k in row]
    decks = {name: _Deck(categories[name], rng) for name in names}
    targets = _targets(settings, order, size, rng)
    trials: list[Trial] = []
    for block, (name, places) in enumerate(zip(order, targets, strict=True)):
        trials += _block(settings, block, name, decks[name], size, places, rng)
    trials[-1] = replace(trials[-1], washout_s=max(trials[-1].washout_s, TAIL_S))
    return tuple(trials)


def _targets(settings: Localizer, order: Sequence[str], size: int, rng: np.random.Generator) -> list[list[int]]:
    """Draw the targets' places in each block: equally many in every category, and about equally many in its blocks."""
    chosen: list[list[int]] = [[] for _ in order]
    if settings.task == "none":
        return chosen
    repeats = settings.task == "one-back"
    for name in dict.fromkeys(order):
        own = [k for k, each in enumerate(order) if each == name]
        wanted = round(settings.targets * size * len(own))
        each, more = divmod(wanted, len(own))
        extra = set(rng.permutation(own)[:more].tolist())
        for k in own:
            chosen[k] = _places(size, each + (k in extra), repeats, rng)
    return chosen


def _places(size: int, count: int, repeats: bool, rng: np.random.Generator) -> list[int]:
    """Draw places that are not neighbours; a block's first picture cannot repeat another, a single picture may come twice."""
    if size == 1:
        return [1 if repeats else 0] * min(count, 1)
    first = 1 if repeats else 0
    slots = size - first - count + 1  # draw from fewer places, then move the drawn places apart
    count = min(count, slots)
    drawn = sorted(rng.permutation(slots)[:count].tolist())
    return [first + place + k for k, place in enumerate(drawn)]


def _block(
    settings: Localizer, block: int, name: str, deck: _Deck, size: int, targets: Sequence[int], rng: np.random.Generator
) -> list[Trial]:
    """Return one block: its pictures, and the fixation after each."""
    repeats, events = settings.task == "one-back", settings.design == "events"
    count = max([size, *(place + 1 for place in targets)])
    drawn = iter(deck.draw(count - (len(targets) if repeats else 0)))
    trials: list[Trial] = []
    pictures: list[Picture] = []
    for place in range(count):
        target = place in targets
        pictures.append(pictures[-1] if target and repeats else next(drawn))
        gap_s = (
            float(rng.uniform(settings.gap_s[0], settings.gap_s[1]))
            if events
            else settings.rest_s
            if place == count - 1
            else settings.blank_s
        )
        shown = pictures[-1]
        trials.append(Trial(block, place, name, shown.path.name, shown.sha256, settings.image_s, gap_s, target))
    return trials


def length_s(trials: Sequence[Trial], baseline_s: float) -> float:
    """Return the duration of a schedule from the first volume, s."""
    return baseline_s + sum(trial.image_s + trial.washout_s for trial in trials)

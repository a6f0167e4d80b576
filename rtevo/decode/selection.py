"""Maps of several categories at once, on the voxels that separate them, with all choices made inside the fold.

A voxel counts by the F of the differences between the categories' responses (a general linear model with the predicted response of each
category; F. Pereira, T. Mitchell, M. Botvinick 2009, doi:10.1016/j.neuroimage.2008.11.007, on selection inside the fold). On the voxels of
largest F a ridge regression (A. Hoerl, R. Kennard 1970, doi:10.1080/00401706.1970.10488634) of each category's predicted response, less the
mean of all, gives its map. The response that all categories share is then taken out of each map, so that scores are centred, and the
noise of its projection is its unit, so that scores of several maps can be compared, averaged and subtracted.

How many voxels, which penalty and which smoothing is decided by nested cross-validation over stretches of the runs: volumes whose response
reaches into a held-out block are left out of the fit. Voxels, centre, penalty, smoothing and unit of a fold know nothing of what it tests.
If no block can be held out (one block a category), the two parts of each block are held out with a gap between them, the choice
is the default, and the performance is marked as weak: the parts share the block's slow noise. Fits happen in the space of the volumes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.categories import MOST_FOLDS, Categories, Fold, folds_of, halves_of
from rtevo.decode.repeats import Repeats
from rtevo.decode.telling import area, pooled
from rtevo.errors import DataError
from rtevo.progress import Progress

__all__ = ["COUNTS", "DEFAULT", "PENALTIES", "Chosen", "Recipe", "area", "pooled", "select_maps"]

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
COUNTS = (300, 1000, 2000, 5000, 0)
"""Numbers of voxels that are tried; 0: all."""
PENALTIES = (0.01, 0.1, 1.0)
"""Ridge penalties that are tried, as a share of the mean squared length of a volume on the selected voxels."""
WEAK = (
    "WEAK: no block could be held out with another of its category left to fit, so parts of blocks were held out; parts share slow "
    "noise; voxels, penalty and smoothing are the defaults. Record two or more blocks of each category, better two runs"
)
_FEWEST = 10  # degrees of freedom, for the noise of what was held out
TOO_FEW = "too few blocks to choose inside the folds: the performance is that of the default voxels, penalty and smoothing"


@dataclass(frozen=True)
class Recipe:
    """The chosen parameters.

    Parameters
    ----------
    voxels : int
        How many; 0: all of the mask.
    penalty : float
        See :data:`PENALTIES`.
    smoothing : int
        Which of the smoothed versions of the volumes.
    """

    voxels: int
    penalty: float
    smoothing: int = 0


DEFAULT = Recipe(1000, 0.01)
"""Where nothing can be held out to choose by; chosen on simulated localizers."""


@dataclass(frozen=True)
class Chosen:
    """The maps, and their choices and performance.

    Parameters
    ----------
    weights : ndarray, float64 (K, voxels)
        One map a name.
    recipe : Recipe
    units : ndarray, float64 (K,)
        Noise of the map's projection (map of length 1, voxels in units of their noise).
    auc, accuracy : float
        Area under the ROC curve, pooled over maps, of held-out blocks (correlation for a numeric target); share of blocks whose own map
        scores highest. NaN where it cannot be measured.
    p_value : float
    folds, permutations : int
    weak : bool
        Parts of blocks were held out, not blocks.
    note : str
    decisions : ndarray, float64 (held out, K)
        Scores of the blocks (or parts) that were held out, in units of the noise.
    labels : ndarray, float64 (held out,)
        Their categories, or values.
    curve : tuple of (int, float)
        Number of voxels and held-out agreement of volumes, for the figure.
    days : tuple of float
        Area (or correlation) and accuracy of each day's blocks by a fit to the other days; empty where there is one day.
    outside : tuple of (ndarray, int (m,), ndarray, float64 (m, K))
        Of each fold: the volumes that its maps have not seen, and their scores.
    """

    weights: Array
    recipe: Recipe
    units: Array
    auc: float
    accuracy: float
    p_value: float
    folds: int
    permutations: int
    weak: bool
    note: str
    decisions: Array
    labels: Array
    curve: tuple[tuple[int, float], ...]
    days: tuple[float, ...] = ()
    outside: tuple[tuple[NDArray[np.int64], Array], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types for ``decoder.json``, None for NaN."""

        def plain(value: float) -> float | None:
            return None if math.isnan(value) else round(float(value), 6)

        return {
            "value": plain(self.auc),
            "accuracy": plain(self.accuracy),
            "p_value": plain(self.p_value),
            "folds": self.folds,
            "blocks": len(self.labels),
            "permutations": self.permutations,
            "weak": self.weak,
            "note": self.note,
            "labels": [float(each) for each in self.labels],
            "decisions": [[round(float(x), 5) for x in row] for row in self.decisions],
            "voxels": [[count, plain(value)] for count, value in self.curve],
        }


@dataclass(frozen=True, eq=False)
class _Fit:
    """Duals of K maps on some voxels (volumes x K), the volumes' products on these, and the noise of the projections in the training."""

    dual: Array
    products: Array
    noise: Array
    order: NDArray[np.int64]


class _Voxels:
    """Volumes in units of the voxels' noise, each less its mean over the mask (which the projection takes out too); voxels first."""

    def __init__(self, patterns: NDArray[np.floating[Any]], repeats: Repeats | None = None) -> None:
        self.repeats = repeats
        centred = np.asarray(patterns, np.float32) - patterns.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
        self.values = np.ascontiguousarray(centred.T)
        self.all = np.asarray(self.values.T @ self.values, np.float64)
        self._squares: dict[bytes, Array] = {}  # of the volumes of a fold, which permutations ask for again and again

    def order(self, train: Flags, design: Array) -> NDArray[np.int64]:
        """Voxels in falling order of the F of the differences between the columns of the design, on some volumes; those that repeat."""
        x = design[train] - design[train].mean(axis=0)
        n, k = x.shape
        inverse = np.linalg.pinv(x.T @ x, hermitian=True)
        rows = np.zeros((len(train), k + 1), np.float32)
        rows[train, :k], rows[train, k] = x @ inverse, 1.0 / n
        found = self.values @ rows
        betas, means = found[:, :k].astype(np.float64), found[:, k].astype(np.float64)
        if (key := train.tobytes()) not in self._squares:
            own = np.einsum("ij,ij->i", self.values[:, train], self.values[:, train]).astype(np.float64)
            self._squares = {**dict(list(self._squares.items())[-MOST_FOLDS:]), key: own}
        squares = self._squares[key] - n * means**2
        explained = np.einsum("vi,ij,vj->v", betas, x.T @ x, betas)
        contrast = np.eye(k)[:-1] - 1.0 / k if k > 1 else np.eye(1)
        apart = betas @ contrast.T
        between = np.einsum("vi,ij,vj->v", apart, np.linalg.pinv(contrast @ inverse @ contrast.T, hermitian=True), apart)
        left = np.maximum(squares - explained, 1e-9 * np.maximum(squares, 1e-30))
        order = np.argsort(-between / left, kind="stable")
        return order if self.repeats is None else order[self.repeats.kept(self.values, train, design)[order]]

    def products(self, order: NDArray[np.int64], counts: Sequence[int]) -> Iterator[tuple[int, Array]]:
        """Products of all volumes with each other on the first voxels, for each number of voxels in rising order."""
        total, done = np.zeros_like(self.all), 0
        for count in sorted({_some(count, len(order)) for count in counts}):
            if count == len(self.values):
                yield 0, self.all
                return
            part = self.values[order[done:count]]
            total, done = total + part.T @ part, count
            yield 0 if count == len(order) else count, total


def _some(count: int, voxels: int) -> int:
    """Number of voxels; 0 and more than there are: all."""
    return voxels if count == 0 or count >= voxels else count


def _solve(products: Array, train: Flags, design: Array, penalty: float, numeric: bool) -> tuple[Array, Array]:
    """Duals (n, K) of maps of length 1, centred, zero outside the training volumes, and the noise of their projections there.

    The noise is that of each volume's projection on the map of the others (leave-one-out in closed form: D. Allen 1974,
    doi:10.1080/00401706.1974.10489157): on what it was fitted to a map has none.
    """
    x = design[train]
    n, k = x.shape
    target = x - x.mean(axis=1, keepdims=True) if k > 1 else x
    centre = np.eye(n) - 1.0 / n
    inner = products[np.ix_(train, train)]
    kernel = centre @ inner @ centre
    size = float(np.trace(kernel)) / n
    target = centre @ target
    if not size > 0 or not (np.ptp(target, axis=0) > 0).all():
        raise DataError("training: expected volumes that show each category's response, found none of one category")
    inverse = np.linalg.inv(kernel + penalty * size * np.eye(n))
    solved = inverse @ target
    dual = centre @ solved
    left_out = target - solved / np.diag(inverse)[:, np.newaxis]  # what a fit without the volume predicts of it
    centred = centre @ x
    glm = centred @ np.linalg.pinv(centred.T @ centred, hermitian=True)  # duals of each category's response
    if not numeric and k > 1:
        shared = glm.mean(axis=1)
        dual -= np.outer(shared, shared @ inner @ dual) / max(float(shared @ inner @ shared), 1e-30)
    length = np.sqrt(np.maximum(np.einsum("ik,ij,jk->k", dual, inner, dual), 1e-30))
    dual /= length
    series = centre @ left_out / length
    left = series - centred @ (glm.T @ series)
    noise = np.sqrt((left**2).sum(axis=0) / max(n - 1 - k, 1))
    whole = np.zeros((len(train), k))
    whole[train] = dual
    return whole, np.maximum(noise, 1e-12)


def _scores(products: Array, train: Flags, dual: Array, noise: Array) -> Array:
    """Score of every volume, (n, K), in units of the noise, relative to the training volumes' mean."""
    found = products @ dual
    return np.asarray((found - found[train].mean(axis=0)) / noise, np.float64)


@dataclass(frozen=True, eq=False)
class _Held:
    """Scores of what was held out: (tested, K) means over each block's volumes, its label, and of each volume with its design and fold."""

    blocks: Array
    labels: Array
    volumes: Array
    design: Array
    fold: Array

    def agreement(self) -> float:
        """Correlation of the volumes' scores with the predicted responses, mean over maps; what is chosen by."""
        if len(self.volumes) < 3:
            return math.nan
        targets = self.design - self.design.mean(axis=1, keepdims=True) if self.design.shape[1] > 1 else self.design
        pairs = zip(self.volumes.T, targets.T, strict=True)
        return float(np.mean([np.corrcoef(a, b)[0, 1] if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0 for a, b in pairs]))


def _held_out(
    versions: Sequence[_Voxels], categories: Categories, folds: Sequence[Fold], recipes: Sequence[Recipe], step: Callable[[], None]
) -> dict[Recipe, _Held]:
    """Score what each fold holds out by each recipe."""
    rows: dict[Recipe, list[tuple[Array, float, Array, Array, Array]]] = {recipe: [] for recipe in recipes}
    design = categories.design
    for number, fold in enumerate(folds):
        for smoothing in sorted({recipe.smoothing for recipe in recipes}):
            mine = [recipe for recipe in recipes if recipe.smoothing == smoothing]
            voxels = versions[smoothing]
            chosen = voxels.repeats is not None or any(recipe.voxels for recipe in mine)
            order = voxels.order(fold.train, design) if chosen else np.arange(len(voxels.values))
            for count, products in voxels.products(order, [recipe.voxels for recipe in mine]):
                for recipe in (each for each in mine if _some(each.voxels, len(order)) == _some(count, len(order))):
                    try:
                        found = _scores(products, fold.train, *_solve(products, fold.train, design, recipe.penalty, categories.numeric))
                    except DataError:
                        continue
                    for k, where in fold.tested:
                        block = categories.blocks[k]
                        label = block.value if categories.numeric else float(block.kind)
                        if where.any():
                            own = np.full(int(where.sum()), float(number))
                            rows[recipe].append((found[where].mean(axis=0), label, found[where], design[where], own))
        step()
    width = design.shape[1]
    held = {}
    for recipe, each in rows.items():
        means, labels, volumes, designs, of_fold = zip(*each, strict=True) if each else ((), (), (), (), ())
        empty = np.zeros((0, width))
        held[recipe] = _Held(
            np.array(means).reshape(-1, width), np.array(labels, np.float64),
            np.concatenate(volumes) if each else empty, np.concatenate(designs) if each else empty,
            np.concatenate(of_fold) if each else np.zeros(0),
        )  # fmt: skip
    return held


def _best(held: dict[Recipe, _Held]) -> Recipe:
    """Recipe of the largest agreement, the first of equals."""
    found = [held[recipe].agreement() for recipe in held]
    return list(held)[int(np.argmax(np.nan_to_num(found, nan=-np.inf)))]


def _measured(held: _Held, categories: Categories) -> tuple[float, float]:
    """Area (correlation for a numeric target) and accuracy of the held-out blocks."""
    if not len(held.labels):
        return math.nan, math.nan
    if categories.numeric:
        known = held.blocks[:, 0]
        return (float(np.corrcoef(known, held.labels)[0, 1]) if len(known) > 2 and np.ptp(known) > 0 else math.nan), math.nan
    return pooled(held.blocks, held.labels)


def select_maps(
    patterns: Sequence[NDArray[np.floating[Any]]],
    categories: Categories,
    parts: Array,
    *,
    counts: Sequence[int] = COUNTS,
    penalties: Sequence[float] = PENALTIES,
    permutations: int = 0,
    rng: np.random.Generator | None = None,
    days: NDArray[np.int64] | None = None,
    progress: Progress | None = None,
    repeats: Repeats | None = None,
) -> Chosen:
    """Choose voxels, penalty and smoothing, fit the maps and measure them on what no choice has seen.

    Parameters
    ----------
    patterns : sequence of ndarray, float (n, voxels)
        The volumes, denoised and standardised; one for each smoothing that is tried.
    categories : Categories
    parts : ndarray, float64 (n, blocks)
        Of :func:`categories_of`.
    counts, penalties : sequence
        That are tried.
    permutations : int
        For the p-value: of whole blocks within runs; voxels and maps are found anew in each, by the recipe chosen in each fold.
    rng : numpy.random.Generator, optional
        Source of the permutations.
    days : ndarray, int (n,), optional
        Day of each volume; where there are several, each day's blocks are also decoded by the other days'.
    progress : callable, optional
        Called with what is done, how much of it, of how much.
    repeats : Repeats, optional
        Only voxels whose responses repeat may be chosen; found anew in each fold, on the volumes that it may see.

    Returns
    -------
    Chosen

    Raises
    ------
    DataError
        A category's response is in no volume.
    """
    versions = [_Voxels(each, repeats) for each in patterns]
    total = len(versions[0].values)
    tried = sorted({count for count in counts if 0 < count < total}) + [0] * (0 in counts or max(counts) >= total)
    grid = [Recipe(*each) for each in itertools.product(tried, penalties, range(len(versions)))]
    default = min(grid, key=lambda each: (each.smoothing, abs(math.log(each.penalty / DEFAULT.penalty)), _apart(each.voxels, total)))
    everything = np.ones(len(categories.design), bool)
    outer, say = folds_of(categories, range(len(categories.blocks)), everything), progress or (lambda what, done, of: None)
    weak, recipe = not outer, default
    if weak:
        outer, used, nested = halves_of(categories), [default, default], [False]
        shown = [Recipe(count, default.penalty) for count in tried]
    else:
        shown = grid
    every = _held_out(versions, categories, outer, shown, _counter(say, "voxels, penalties, smoothing", len(outer)))
    if not weak:
        recipe = _best(every)
        used, nested = _choices(versions, categories, outer, grid, default, _counter(say, "the same in each fold", len(outer)))
    curve = [(count or total, max(held.agreement() for each, held in every.items() if each.voxels == count)) for count in tried]
    held = _nested(versions, categories, outer, used[: len(outer)])
    auc, accuracy = _measured(held, categories)
    p_value = math.nan
    if permutations and rng is not None and math.isfinite(auc) and not weak:
        made = _permuted(categories, parts, permutations, rng)
        tick, chance = _counter(say, "permutations", permutations), []
        for each in made:
            chance.append(_measured(_nested(versions, each, outer, used), each)[0])
            tick()
        p_value = (1 + sum(not each < auc for each in chance)) / (1 + permutations)
    weights, units = _final(versions[recipe.smoothing], categories, recipe, every[recipe])
    apart = _by_days(versions, categories, days, grid, default) if days is not None and len(np.unique(days)) > 1 else ()
    note = WEAK if weak else TOO_FEW if len(grid) > 1 and not any(nested) else ""
    return Chosen(
        weights, recipe, units, auc, accuracy, p_value, len(outer), permutations, weak, note, held.blocks, held.labels, tuple(curve), apart,
        tuple(_outside(versions, categories, outer, used[: len(outer)])),
    )  # fmt: skip


def _outside(
    versions: Sequence[_Voxels], categories: Categories, folds: Sequence[Fold], used: Sequence[Recipe]
) -> Iterator[tuple[NDArray[np.int64], Array]]:
    """Scores of the volumes that each fold's maps have not seen."""
    for fold, recipe in zip(folds, used, strict=True):
        voxels = versions[recipe.smoothing]
        order = voxels.order(fold.train, categories.design)
        _, products = next(voxels.products(order, [recipe.voxels]))
        try:
            found = _scores(products, fold.train, *_solve(products, fold.train, categories.design, recipe.penalty, categories.numeric))
        except DataError:
            continue
        unseen = np.flatnonzero(~fold.train)
        yield unseen, found[unseen]


def _apart(voxels: int, total: int) -> float:
    """How far a number of voxels is from the default's."""
    return abs(math.log(_some(voxels, total) / min(DEFAULT.voxels, total)))


def _choices(
    versions: Sequence[_Voxels],
    categories: Categories,
    folds: Sequence[Fold],
    grid: Sequence[Recipe],
    default: Recipe,
    step: Callable[[], None],
) -> tuple[list[Recipe], list[bool]]:
    """Choose each fold's recipe by cross-validation of the blocks that it does not test, and say where it could; else the default."""
    used, nested = [], []
    for fold in folds:
        tested = {k for k, _ in fold.tested}
        rest = [k for k, block in enumerate(categories.blocks) if k not in tested and (block.shown & fold.train).sum() >= 2]
        inner = folds_of(categories, rest, fold.train)
        used.append(_best(_held_out(versions, categories, inner, grid, lambda: None)) if inner else default)
        nested.append(bool(inner))
        step()
    return used, nested


def _permuted(categories: Categories, parts: Array, count: int, rng: np.random.Generator) -> Iterator[Categories]:
    """Yield the categories with the labels of whole blocks permuted within runs."""
    run = np.array([block.run for block in categories.blocks])
    for _ in range(count):
        order = np.arange(len(run))
        for number in np.unique(run):
            order[run == number] = rng.permutation(order[run == number])
        yield categories.relabelled(order, parts)


def _by_days(
    versions: Sequence[_Voxels], categories: Categories, days: NDArray[np.int64], grid: Sequence[Recipe], default: Recipe
) -> tuple[float, ...]:
    """Decode each day's blocks by a fit to the other days."""
    folds = []
    for day in np.unique(days):
        tested = tuple((k, block.shown) for k, block in enumerate(categories.blocks) if (block.shown & (days == day)).any())
        folds.append(Fold(days != day, tested))
    used, _ = _choices(versions, categories, folds, grid, default, lambda: None)
    return _measured(_nested(versions, categories, folds, used), categories)


def _counter(say: Progress, what: str, of: int) -> Callable[[], None]:
    """Return a function that reports one more done."""
    done = itertools.count(1)
    return lambda: say(what, next(done), of)


def _nested(versions: Sequence[_Voxels], categories: Categories, folds: Sequence[Fold], used: Sequence[Recipe]) -> _Held:
    """Score what each fold holds out by the recipe chosen in it."""
    found = [_held_out(versions, categories, [fold], [recipe], lambda: None)[recipe] for fold, recipe in zip(folds, used, strict=True)]
    if not found:
        return _held_out(versions, categories, [], [DEFAULT], lambda: None)[DEFAULT]
    number = [np.full(len(each.fold), float(fold)) for fold, each in enumerate(found)]
    return _Held(
        np.concatenate([each.blocks for each in found]),
        np.concatenate([each.labels for each in found]),
        np.concatenate([each.volumes for each in found]),
        np.concatenate([each.design for each in found]),
        np.concatenate(number),
    )


def _final(voxels: _Voxels, categories: Categories, recipe: Recipe, held: _Held) -> tuple[Array, Array]:
    """Fit the maps to all volumes; the unit is their noise there times how much larger it was where it was held out."""
    everything = np.ones(len(categories.design), bool)
    order = voxels.order(everything, categories.design)
    kept = order[: _some(recipe.voxels, len(order))]
    part = voxels.values[kept]
    products = np.asarray(part.T @ part, np.float64)
    dual, noise = _solve(products, everything, categories.design, recipe.penalty, categories.numeric)
    weights = np.zeros((dual.shape[1], len(voxels.values)))
    weights[:, kept] = (part @ dual).T
    return weights, noise * _optimism(held)


def _optimism(held: _Held) -> float:
    """How much larger held-out scores' noise is than the fit's own: root mean square of what the design leaves, at least 1."""
    squares, freedom = 0.0, 0
    for fold in np.unique(held.fold):
        here = held.fold == fold
        x = np.column_stack([held.design[here], np.ones(int(here.sum()))])
        solution, _, rank, _ = np.linalg.lstsq(x, held.volumes[here], rcond=1e-6)
        squares += float(((held.volumes[here] - x @ solution) ** 2).mean(axis=1).sum())
        freedom += len(x) - int(rank)
    return max(1.0, math.sqrt(squares / freedom)) if freedom >= _FEWEST else 1.0

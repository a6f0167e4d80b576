"""Build a weight map from training runs, and measure its performance on held-out blocks.

Every method is linear in the voxels and sees them only through the products of volumes with each other, so all fits happen in the
space of the volumes (as many dimensions as there are volumes) and are mapped back to the voxels exactly.

- ``ridge`` (default): ridge regression of the target's predicted response on all volumes (A. Hoerl, R. Kennard 1970,
  doi:10.1080/00401706.1970.10488634).
- ``logistic``, ``lda``, ``pca-logistic``: scikit-learn's logistic regression, linear discriminant analysis with Ledoit-Wolf shrinkage,
  and principal components, scaling, logistic regression, on the volumes in which one side's response clearly leads.

Performance is measured on blocks that the fit has not seen, and volumes whose haemodynamic response reaches into them are left out of the
fit. Where the run has too few blocks for that, no number is given. The p-value is by permutation of whole blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.events import Event, Target, blocks, predicted
from rtevo.errors import DataError

__all__ = ["METHODS", "Examples", "Method", "Performance", "fit_weights", "measure", "measure_days"]

Array = NDArray[np.float64]
Method = Literal["ridge", "logistic", "lda", "pca-logistic"]
METHODS: tuple[Method, ...] = ("ridge", "logistic", "lda", "pca-logistic")
RIDGE = 1.0
"""Ridge penalty as a share of the mean squared length of a volume."""
PURGE_S = 16.0
"""Volumes closer than this before or after a tested block are left out of the fit: the response to one reaches into the other."""
MOST_FOLDS = 5
_COMPONENTS = 20
_LEADS = 0.5  # a volume has a class where one side's response is over this share of its maximum, and twice the other's


@dataclass(frozen=True, eq=False)
class Examples:
    """Volumes of all training runs, ready to fit.

    Parameters
    ----------
    patterns : ndarray, float (n, voxels)
        Denoised and standardised.
    times_s : ndarray, float64 (n,)
        Their middles, in seconds from the start of their run.
    run : ndarray, int (n,)
        Which run.
    events : list of list of Event
        Of each run.
    targets : list of Target
        Of each run's events.
    """

    patterns: NDArray[np.floating[Any]]
    times_s: Array
    run: NDArray[np.int64]
    events: Sequence[Sequence[Event]]
    targets: Sequence[Target]

    def sides(self, signs: Sequence[Array] | None = None) -> tuple[Array, Array]:
        """Return the predicted responses to what counts positively and negatively, (n,) each; `signs` replace the coefficients."""
        plus, minus = np.zeros(len(self.times_s)), np.zeros(len(self.times_s))
        for run, (events, target) in enumerate(zip(self.events, self.targets, strict=True)):
            here = self.run == run
            weights = target.coefficients if signs is None else signs[run]
            plus[here] = predicted(self.times_s[here], events, np.where(np.isnan(weights), np.nan, np.maximum(weights, 0)))
            minus[here] = predicted(self.times_s[here], events, np.where(np.isnan(weights), np.nan, np.maximum(-weights, 0)))
        return plus, minus


@dataclass(frozen=True)
class Performance:
    """How well held-out blocks are decoded.

    Parameters
    ----------
    value : float
        Area under the ROC curve of blocks (contrast), or correlation with the events' values (numeric); NaN where it cannot be measured.
    p_value : float
        Share of permutations of whole blocks that do as well.
    folds, blocks, permutations : int
        What they rest on.
    note : str
        The reason if there is no value, or further remarks.
    decisions : tuple of (float, float)
        Value and held-out decision of each block.
    """

    value: float
    p_value: float
    folds: int
    blocks: int
    permutations: int
    note: str = ""
    decisions: tuple[tuple[float, float], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types, None for NaN."""

        def plain(value: Any) -> Any:
            if isinstance(value, tuple):
                return [plain(each) for each in value]
            return None if isinstance(value, float) and math.isnan(value) else value

        return {key: plain(value) for key, value in asdict(self).items()}


def fit_weights(examples: Examples, method: Method = "ridge") -> Array:
    """Fit a weight map.

    Returns
    -------
    ndarray, float64 (voxels,)

    Raises
    ------
    DataError
        The method cannot fit the target, or too few volumes show either side.
    """
    products = _products(examples.patterns)
    plus, minus = examples.sides()
    dual = _fitter(method, examples.targets[0].categorical)(products, plus, minus)
    return np.asarray(dual @ examples.patterns, np.float64)


def measure(examples: Examples, methods: Sequence[Method], permutations: int, rng: np.random.Generator) -> tuple[Method, Performance]:
    """Cross-validate over blocks, with a permutation test; choose a method where there are several.

    The choice is made by cross-validation, and measured by nesting it: in each outer fold the method is chosen anew, by cross-validation of
    the blocks that are not held out (the first method, where those are too few). Permutations repeat all of that.

    Parameters
    ----------
    examples : Examples
    methods : sequence of str
        One or several of ``METHODS``.
    permutations : int
        Number of permutations, 0 for none.
    rng : numpy.random.Generator
        Source of the permutations.

    Returns
    -------
    method : str
        The one method, or the best on all blocks.
    performance : Performance
    """
    categorical = examples.targets[0].categorical
    found = [(run, group) for run, target in enumerate(examples.targets) for group in blocks(examples.events[run], target.coefficients)]
    values = np.array([examples.targets[run].coefficients[group[0]] for run, group in found])
    if _folds(values, categorical) is None:
        fewest = min(int((values > 0).sum()), int((values < 0).sum())) if categorical else len(values)
        note = f"held-out blocks need at least two of each side, found {fewest} of one"
        return methods[0], Performance(math.nan, math.nan, 0, len(found), 0, note)
    products = _products(examples.patterns)
    extent = [_extent(examples, run, group) for run, group in found]

    def study(block_values: Array) -> _Study:
        signs = [target.coefficients.copy() for target in examples.targets]
        for (run, group), value in zip(found, block_values, strict=True):
            signs[run][group] = value
        return _Study(products, examples.sides(signs), block_values, extent, categorical)

    everything = np.ones(len(products), bool), np.arange(len(found))
    observed = study(values)
    decided = observed.decide(methods, *everything)
    value = _agreement(decided, values, categorical)
    undecided = int(np.isnan(decided).sum())
    left = f"{undecided} of {len(found)} blocks could not be held out: too little of the run is left for training"
    if math.isnan(value):
        return methods[0], Performance(math.nan, math.nan, 0, len(found), 0, left)
    shuffled = [rng.permutation(values) for _ in range(permutations)]
    chance = [_agreement(study(each).decide(methods, *everything), each, categorical) for each in shuffled]
    p_value = (1 + sum(not each < value for each in chance)) / (1 + permutations) if permutations else math.nan
    folds = _folds(values, categorical)
    count = 0 if folds is None else int(folds.max()) + 1
    decisions = tuple((float(a), float(b)) for a, b in zip(values, decided, strict=True))
    note = "; ".join([f"the choice among {len(methods)} methods is nested in it"] * (len(methods) > 1) + [left] * (undecided > 0))
    return observed.choose(methods, *everything), Performance(value, p_value, count, len(found), permutations, note, decisions)


def measure_days(
    examples: Examples, days: Sequence[str], methods: Sequence[Method], permutations: int, rng: np.random.Generator
) -> Performance:
    """Decode the blocks of each day by a fit to the other days' runs, with a permutation test.

    Parameters
    ----------
    examples : Examples
    days : sequence of str
        Of each run.
    methods : sequence of str
        One or several of ``METHODS``; of several the one that is best on the other days' blocks is taken for each day.
    permutations : int
        Number of permutations, 0 for none: of whole blocks, within days.
    rng : numpy.random.Generator
        Source of the permutations.

    Returns
    -------
    Performance
        Its `folds` are days.
    """
    categorical = examples.targets[0].categorical
    found = [(run, group) for run, target in enumerate(examples.targets) for group in blocks(examples.events[run], target.coefficients)]
    values = np.array([examples.targets[run].coefficients[group[0]] for run, group in found])
    names = sorted(set(days))
    of_block = np.array([names.index(days[run]) for run, _ in found], np.int64)
    of_volume = np.array([names.index(day) for day in days], np.int64)[examples.run]
    products, extent = _products(examples.patterns), [_extent(examples, run, group) for run, group in found]

    def decided(block_values: Array) -> Array:
        signs = [target.coefficients.copy() for target in examples.targets]
        for (run, group), value in zip(found, block_values, strict=True):
            signs[run][group] = value
        return _Study(products, examples.sides(signs), block_values, extent, categorical).decide_days(methods, of_volume, of_block)

    decisions = decided(values)
    value = _agreement(decisions, values, categorical)
    undecided = int(np.isnan(decisions).sum())
    note = f"{undecided} of {len(found)} blocks could not be decoded from the other days" if undecided else ""
    if math.isnan(value):
        return Performance(math.nan, math.nan, 0, len(found), 0, note or "held-out days need blocks of both sides")
    shuffled = []
    for _ in range(permutations):
        each = values.copy()
        for day in range(len(names)):
            each[of_block == day] = rng.permutation(values[of_block == day])
        shuffled.append(each)
    chance = [_agreement(decided(each), each, categorical) for each in shuffled]
    p_value = (1 + sum(not each < value for each in chance)) / (1 + permutations) if permutations else math.nan
    pairs = tuple((float(a), float(b)) for a, b in zip(values, decisions, strict=True))
    return Performance(value, p_value, len(names), len(found), permutations, note, pairs)


@dataclass(frozen=True, eq=False)
class _Study:
    """Blocks to be decided: products of the volumes, predicted responses, the blocks' values and what volumes they reach."""

    products: Array
    sides: tuple[Array, Array]
    values: Array
    extent: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]
    categorical: bool

    def decide(self, methods: Sequence[Method], volumes: NDArray[np.bool_], chosen: NDArray[np.int64]) -> Array:
        """Decide each of the chosen blocks by a fit, to some of the volumes, without it and its neighbourhood; NaN for the others."""
        decided = np.full(len(self.values), np.nan)
        folds = _folds(self.values[chosen], self.categorical)
        for fold in range(0 if folds is None else int(folds.max()) + 1):
            assert folds is not None
            tested, rest = chosen[folds == fold], chosen[folds != fold]
            train = volumes & ~np.any([self.extent[k][1] for k in tested], axis=0)
            if not train.any():
                continue
            self._decide_by(self.choose(methods, train, rest), train, tested, decided)
        return decided

    def decide_days(self, methods: Sequence[Method], of_volume: NDArray[np.int64], of_block: NDArray[np.int64]) -> Array:
        """Decide the blocks of each day by a fit to all others."""
        decided = np.full(len(self.values), np.nan)
        for day in np.unique(of_block):
            train, tested = of_volume != day, np.flatnonzero(of_block == day)
            if train.any():
                self._decide_by(self.choose(methods, train, np.flatnonzero(of_block != day)), train, tested, decided)
        return decided

    def _decide_by(self, method: Method, train: NDArray[np.bool_], tested: NDArray[np.int64], decided: Array) -> None:
        """Fit to some volumes, and write the decisions on some blocks down; nothing where it cannot be fitted."""
        try:
            part = self.products[np.ix_(train, train)]
            dual = _fitter(method, self.categorical)(part, self.sides[0][train], self.sides[1][train])
        except DataError:
            return
        decisions = dual @ (self.products[train] - self.products[train].mean(axis=0))
        for k in tested:
            if self.extent[k][0].any():
                decided[k] = decisions[self.extent[k][0]].mean() - decisions[train].mean()

    def choose(self, methods: Sequence[Method], volumes: NDArray[np.bool_], chosen: NDArray[np.int64]) -> Method:
        """Choose the method that decides the blocks best, the first of equals."""
        if len(methods) == 1 or _folds(self.values[chosen], self.categorical) is None:
            return methods[0]
        found = [_agreement(self.decide([method], volumes, chosen), self.values, self.categorical) for method in methods]
        return methods[int(np.argmax(np.nan_to_num(found, nan=-np.inf)))]


def _agreement(decided: Array, values: Array, categorical: bool) -> float:
    """Area under the ROC curve, or correlation, over the blocks that were decided."""
    known = np.isfinite(decided)
    if not categorical:
        return float(np.corrcoef(decided[known], values[known])[0, 1]) if known.sum() > 2 else math.nan
    plus, minus = decided[known & (values > 0)], decided[known & (values < 0)]
    if not len(plus) or not len(minus):
        return math.nan
    difference = plus[:, np.newaxis] - minus
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def _folds(values: Array, categorical: bool) -> NDArray[np.int64] | None:
    """Fold of each block: the blocks of either side are dealt out in turn; None where there are too few."""
    if not categorical:
        return None if len(values) < 4 else np.arange(len(values)) * min(MOST_FOLDS, len(values) // 2) // len(values)
    count = min(int((values > 0).sum()), int((values < 0).sum()), MOST_FOLDS)
    if count < 2:
        return None
    folds = np.zeros(len(values), np.int64)
    for side in (values > 0, values < 0):
        folds[side] = np.arange(side.sum()) % count
    return folds


def _extent(examples: Examples, run: int, group: list[int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the volumes that show a block's response, and those near enough to be affected by it."""
    events = [examples.events[run][k] for k in group]
    start, end = events[0].onset_s, max(event.onset_s + event.duration_s for event in events)
    here, t = examples.run == run, examples.times_s
    return here & (t >= start + 4.0) & (t <= end + 6.0), here & (t > start - PURGE_S) & (t < end + PURGE_S)


def _products(patterns: NDArray[np.floating[Any]]) -> Array:
    """Products of all volumes with each other."""
    wide = np.asarray(patterns, np.float64)
    return np.asarray(wide @ wide.T, np.float64)


def _fitter(method: Method, categorical: bool) -> Callable[[Array, Array, Array], Array]:
    """Return a function (products, plus, minus) -> weights of the volumes whose sum is the map."""
    if method == "ridge":
        return _ridge
    if not categorical:
        raise DataError(f"method '{method}': expected a contrast, got a numeric target (use ridge)")
    return lambda products, plus, minus: _classify(method, products, plus, minus)


def _ridge(products: Array, plus: Array, minus: Array) -> Array:
    """Ridge regression of the difference of the predicted responses."""
    target = plus - minus
    if np.ptp(target) == 0:
        raise DataError("training: expected volumes that show the target's response, found none")
    n = len(target)
    centre = np.eye(n) - 1.0 / n
    kernel = centre @ products @ centre
    kernel[np.diag_indices(n)] += RIDGE * np.trace(kernel) / n
    return np.asarray(centre @ np.linalg.solve(kernel, centre @ target), np.float64)


def _classify(method: Method, products: Array, plus: Array, minus: Array) -> Array:
    """Fit a classifier of scikit-learn in the space of the volumes."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression

    lead = _LEADS * max(float(plus.max()), float(minus.max()), 1e-12)
    label = np.where((plus > lead) & (plus > 2 * minus), 1, np.where((minus > lead) & (minus > 2 * plus), -1, 0))
    used = label != 0
    sides = int((label == 1).sum()), int((label == -1).sum())
    if min(sides) < 2:
        raise DataError(f"training: expected volumes that clearly show each side, two or more, found {sides[0]} and {sides[1]}")
    n = int(used.sum())
    centre = np.eye(n) - 1.0 / n
    values, vectors = np.linalg.eigh(centre @ products[np.ix_(used, used)] @ centre)
    kept = values > 1e-9 * values.max()
    values, vectors = values[kept], vectors[:, kept]
    if method == "pca-logistic":
        values, vectors = values[-_COMPONENTS:], vectors[:, -_COMPONENTS:]
    scores = vectors * np.sqrt(values)
    scale = scores.std(axis=0) if method == "pca-logistic" else np.full(len(values), math.sqrt(float(values.sum()) / n))
    model = (
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        if method == "lda"
        else LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)
    )
    model.fit(scores / scale, label[used])
    dual = np.zeros(len(label))
    dual[used] = centre @ (vectors @ (model.coef_[0] / scale / np.sqrt(values)))
    return dual

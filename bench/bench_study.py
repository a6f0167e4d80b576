"""False-positive rates of a study's tests, by simulated studies without an effect: ``python -m bench.bench_study``.

Scores are autocorrelated and heavy-tailed, participants' gains and noise differ (:mod:`tests.support.studies`). It validates first: an
effect of five standard deviations is found by each test. Peers: the t test of the summaries (Welch), and the mixed model of all images that
the report shows beside its test.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from rtevo.study.analysis import course, gain, randomised
from rtevo.study.mixed import mixed_model
from tests.support.studies import allotted, null_scores

Test = Callable[[NDArray[np.float64], NDArray[np.bool_]], float]
LEVEL, IMAGES = 0.05, 60


def summaries(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gain of each participant."""
    return np.array([gain(own)[0] for own in scores])


def randomisation(paired: bool) -> Test:
    """The report's test, within pairs or over all."""

    def test(scores: NDArray[np.float64], arm: NDArray[np.bool_]) -> float:
        names = [str(k) for k in range(len(arm))]
        blocks = {name: str(k // 2) for k, name in enumerate(names)} if paired else {}
        values = dict(zip(names, summaries(scores), strict=True))
        return randomised(values, dict(zip(names, arm, strict=True)), blocks, np.random.default_rng(0)).p

    return test


def welch(scores: NDArray[np.float64], arm: NDArray[np.bool_]) -> float:
    """The t test."""
    values = summaries(scores)
    return float(stats.ttest_ind(values[arm], values[~arm], equal_var=False).pvalue)


def mixed(scores: NDArray[np.float64], arm: NDArray[np.bool_]) -> float:
    """The mixed model."""
    n, images = scores.shape
    names = np.repeat([str(k) for k in range(n)], images)
    columns = {"visit": "1", "run": 1, "generation": np.tile(np.arange(images) // 10, n), "se": 1.0, "probe": None, "counts": True}
    rows = pd.DataFrame({"participant": names, "score": scores.ravel(), **columns})
    return mixed_model(course(rows).images, {str(k): bool(own) for k, own in enumerate(arm)}).p


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=4000, help="for each number; the mixed model's are a tenth")
    parser.add_argument("--participants", type=int, nargs="+", default=[6, 8, 16], help="an arm")
    options = parser.parse_args()
    tests: dict[str, tuple[Test, bool, int]] = {
        "randomisation, in pairs": (randomisation(True), True, options.studies),
        "randomisation, one block": (randomisation(False), False, options.studies),
        "t test (Welch)": (welch, False, options.studies),
        "mixed model": (mixed, False, options.studies // 10),
    }
    print(f"| test at {LEVEL:g} | " + " | ".join(f"{n} an arm" for n in options.participants) + " |")
    print("|---" * (1 + len(options.participants)) + "|")
    for name, (test, paired, studies) in tests.items():
        cells = []
        for n in options.participants:
            rng = np.random.default_rng(n)
            arm = allotted(rng, n, paired)
            shift = 5 * np.std(summaries(null_scores(rng, 200)))
            found = test(null_scores(rng, 2 * n, IMAGES) + shift * np.outer(arm, np.linspace(-1, 1, IMAGES)), arm)
            assert found <= LEVEL, f"{name}: expected an effect of five standard deviations to be found, p = {found}"
            false = sum(test(null_scores(rng, 2 * n, IMAGES), allotted(rng, n, paired)) <= LEVEL for _ in range(studies)) / studies
            cells.append(f"{false:.3f} ± {math.sqrt(false * (1 - false) / studies):.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

"""What all scores together say of the preference: the model that evolution asks, and how sure it is of what.

Everything is said by draws from the posterior, so that whatever is made of them (an image's response, which of two is better, a cosine)
has an interval. Posteriors do not depend on how the images were chosen, only on the scores; a p value of a run that chose its images by
its scores would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.evolve.base import Evolver, History
from rtevo.evolve.model import Curved, Errors, Linear, features, one_thread, relative_precision, without_outliers, without_outliers_together
from rtevo.evolve.runs import Pooled, Scores, fit_pooled

__all__ = ["FEWEST", "Preference", "fit_linear", "pooled", "preference_of"]

Array = NDArray[np.float64]
FEWEST = 4  # scores before a model is fitted
_CURVED_EVIDENCE = 3.0  # the curved model is used where its log evidence is better by this


@dataclass(frozen=True)
class Preference:
    """The model of all scores.

    Parameters
    ----------
    linear : Linear
    curved : Curved or None
        None where the scores do not call for more than a direction.
    """

    linear: Linear
    curved: Curved | None

    @property
    def advantage(self) -> float:
        """Log evidence of a preference, of either kind, over none.

        Without a preference it exceeds log(20) in one run of 20 at most, whenever one looks and however images were chosen (J. Ville 1939;
        P. Gruenwald et al. 2024, doi:10.1093/jrsssb/qkae011), but for the reweighting of incredible scores.
        """
        return self.linear.advantage

    @property
    def direction(self) -> Array:
        """Best guess of the direction (d,) in which responses rise, not of length 1."""
        return np.asarray(self.linear.mean().direction[0], np.float64)

    def directions(self, n: int, rng: np.random.Generator) -> Array:
        """Draws (n, d) of that."""
        with one_thread():
            return self.linear.posterior(n, rng)[:, :-1]

    def responses(self, latents: Array, n: int, rng: np.random.Generator) -> Array:
        """Draws (n, m) of the responses to latents (m, d), above that to a random image, in the unit of the scores."""
        with one_thread():
            if self.curved is not None:
                return self.curved.posterior(latents, n, rng)
            return np.asarray(self.linear.posterior(n, rng) @ features(latents).T, np.float64)


def fit_linear(known: History) -> tuple[Linear, Array]:
    """Fit the linear model; gives also how far each score is trusted: its standard error, and whether the others make it credible."""
    return without_outliers(known.latents, known.fitness, relative_precision(known.fitness_se))


def pooled(evolver: Evolver) -> Pooled | None:
    """Fit the model of several runs; None where there is only one, all of whose scores count the same."""
    if not evolver.half_life and len(np.unique(evolver.run_of(evolver.history().ids))) < 2:
        return None
    return fit_pooled(Scores.of(evolver, evolver.half_life))


def preference_of(evolver: Evolver) -> Preference | None:
    """Fit all scores of an evolver, whatever its strategy; None where there are too few, or all are alike.

    Linear algebra should be kept on one thread, see :func:`rtevo.evolve.model.one_thread`.
    """
    known = evolver.history()
    if len(known.ids) < FEWEST or np.ptp(known.fitness) == 0:
        return None
    errors: Errors | None = None
    latents, fitness, precision = known.latents, known.fitness, np.ones(len(known.ids))
    if (several := pooled(evolver)) is not None:
        latents, fitness, errors, linear = several.latents, several.values, several.errors, several.linear
        precision = np.ones(len(fitness))
    elif (together := evolver.own_together(known)) is not None:
        fitness = together[0]
        linear, errors = without_outliers_together(latents, fitness, together[1])
    else:
        linear, precision = fit_linear(known)
    curved = Curved(latents, fitness, precision, linear, linear.mean().direction[0], errors)
    return Preference(linear, curved if curved.advantage > _CURVED_EVIDENCE else None)

"""A mixed model of all images, to compare with the randomisation test. (Optional: ``pip install 'rtevo[study]'``.)"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rtevo.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Mixed", "mixed_model"]


@dataclass(frozen=True)
class Mixed:
    """Difference of the treated arm's rise of scores, from a participant's first image to the last, from the other arm's.

    Parameters
    ----------
    estimate, low, high, p : float
        With its interval and two-sided p value, from a normal distribution: valid for many participants.
    converged : bool
        The fit found its optimum.
    """

    estimate: float
    low: float
    high: float
    p: float
    converged: bool


def mixed_model(images: DataFrame, treated: Mapping[str, bool], level: float = 0.05) -> Mixed:
    """Fit ``level ~ treated * progress`` with an intercept and a slope of each participant's own, by restricted maximum likelihood.

    N. M. Laird and J. H. Ware 1982, Biometrics 38:963-974, doi:10.2307/2529876; fitted by statsmodels.

    Parameters
    ----------
    images : DataFrame
        From a :class:`rtevo.study.analysis.Course`.
    treated : mapping of str to bool
        Participants of two arms; others are left out.
    level : float
        The interval holds 1 - level.

    Raises
    ------
    DataError
        statsmodels is not installed, or the model cannot be fitted: too few participants or images.
    """
    try:
        from statsmodels.regression.mixed_linear_model import MixedLM
    except ImportError:
        raise DataError("statsmodels is not installed: pip install 'rtevo[study]'") from None
    own = images[images["participant"].isin(list(treated))]
    arm = own["participant"].map(dict(treated)).to_numpy(np.float64)
    progress = own["progress"].to_numpy(np.float64)
    fixed = np.column_stack([np.ones(len(own)), arm, progress, arm * progress])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no convergence (see `converged`), or an optimum at the border
        try:
            model = MixedLM(own["level"].to_numpy(np.float64), fixed, own["participant"].to_numpy(), fixed[:, [0, 2]])
            fit = model.fit(reml=True, method="lbfgs")
            low, high = fit.conf_int(level)[3]
            found = Mixed(float(fit.fe_params[3]), float(low), float(high), float(fit.pvalues[3]), bool(fit.converged))
        except (ValueError, np.linalg.LinAlgError) as problem:
            raise DataError(f"the mixed model cannot be fitted to {own['participant'].nunique()} participants: {problem}") from None
    if not all(map(math.isfinite, (found.estimate, found.low, found.high, found.p))):
        raise DataError(f"the mixed model cannot be fitted to {own['participant'].nunique()} participants and {len(own)} images")
    return found

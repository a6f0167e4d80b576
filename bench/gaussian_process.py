"""A peer for ``bench_unseen.py``: a Gaussian process with expected improvement (BoTorch, optional: ``pip install 'rtevo[bench]'``).

M. Balandat et al. 2020, arXiv:1910.06403; log expected improvement: S. Ament et al. 2023, arXiv:2310.20708; length scales that follow the
number of dimensions: C. Hvarfner et al. 2024, arXiv:2402.02229. BoTorch's own defaults, but for what a session needs: latents are no longer
than the surrogate's, a generation is found at once, and the last one lies around the maximum of the posterior mean, as the surrogate's.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from rtevo.evolve import Evolver

_BOX = 3.0  # of each coordinate, in standard deviations
_SPREAD = 0.1  # of the last images' directions, as the surrogate's


class GaussianProcess(Evolver):
    """Strategy "gp": BoTorch's standard Gaussian process, log expected improvement of a generation."""

    strategy = "gp"

    def __init__(self, latent_size: int, rng: np.random.Generator) -> None:
        super().__init__(latent_size, rng)
        self._budget = 0

    def extend(self, n: int) -> None:
        """Say how many more candidates will be asked for."""
        self._budget = self.asked + n

    def _propose(self, n: int) -> np.ndarray:
        known = self.history()
        if len(known.ids) < 4:
            return self._rng.standard_normal((n, self.latent_size))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._best(n, known.latents, known.fitness, last=self.asked + n >= self._budget)

    def _within(self, points: Any) -> Any:
        """Shorten points (..., d) to the greatest length."""
        most = math.sqrt(self.latent_size) + 1
        return points * (most / points.norm(dim=-1, keepdim=True).clamp_min(most))

    def _best(self, n: int, latents: np.ndarray, fitness: np.ndarray, *, last: bool) -> np.ndarray:
        """Fit the model, and find the best candidates."""
        import torch
        from botorch.acquisition import AnalyticAcquisitionFunction, PosteriorMean, qLogExpectedImprovement
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.optim import optimize_acqf
        from gpytorch.mlls import ExactMarginalLogLikelihood

        torch.manual_seed(int(self._rng.integers(2**31)))
        torch.set_num_threads(1)
        x, y = torch.from_numpy(latents), torch.from_numpy(fitness)[:, None]
        spread = y.std().clamp_min(1e-12)
        model = SingleTaskGP(x / (2 * _BOX) + 0.5, (y - y.mean()) / spread, outcome_transform=None)  # into the unit cube
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs={"options": {"maxiter": 75}})

        class Inside(torch.nn.Module):
            """An acquisition function of the nearest allowed candidates."""

            def __init__(self, inner: Any, within: Any) -> None:
                super().__init__()
                self.inner, self.within, self.model = inner, within, inner.model

            def forward(self, points: Any) -> Any:
                return self.inner(self.within(points) / (2 * _BOX) + 0.5)

        means = model.posterior(x / (2 * _BOX) + 0.5).mean[:, 0]
        inner: AnalyticAcquisitionFunction | qLogExpectedImprovement
        inner = PosteriorMean(model) if last else qLogExpectedImprovement(model, best_f=means.max())
        many = 1 if last else n
        best = x[means.argmax()]
        starts = torch.from_numpy(self._rng.standard_normal((2, many, self.latent_size)))
        starts[1:] = best + 0.5 * starts[1:]  # as BoTorch does: a random start, and one around the best so far
        found, _ = optimize_acqf(
            Inside(inner, self._within), torch.tensor([[-_BOX], [_BOX]]).double().expand(2, self.latent_size), many, 2,
            batch_initial_conditions=starts.clamp(-_BOX, _BOX), options={"maxiter": 50},
        )  # fmt: skip
        points = self._within(found).detach().numpy()
        if last:
            lengths = np.linalg.norm(points, axis=1, keepdims=True)
            noise = self._rng.standard_normal((n, self.latent_size))
            points = points + _SPREAD * lengths * noise / np.linalg.norm(noise, axis=1, keepdims=True)
            points *= lengths / np.linalg.norm(points, axis=1, keepdims=True)
        return np.asarray(points)

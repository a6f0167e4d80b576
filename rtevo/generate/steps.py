"""Schedulers as tables: the mixture at each step of a denoising loop, computed once instead of for every picture.

The common schedulers for few steps are linear: the network's input at each step, and the final result, are fixed combinations of the first
noise, of noise drawn at later steps (LCM, DDPM), and of the network's outputs so far (also for DDIM, PNDM, DPM-Solver++ and UniPC, whatever
the network predicts). The factors are found by running the scheduler on unit vectors. A loop over such a table needs no scheduler, no
synchronisation with the host and no state, so it can be captured as one CUDA graph.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from rtevo.errors import ModelError
from rtevo.generate.parts import drawing

__all__ = ["StepTable", "step_table"]

LINEAR_TOLERANCE = 1e-4
"""Largest relative deviation of the table from the scheduler, which computes in single precision."""


@dataclass(frozen=True, eq=False)
class StepTable:
    """A denoising loop of m evaluations of the network.

    Column 0 stands for the noise at the start, N(0, I), the next d columns for noise drawn later, column d + i + 1 for
    output i.

    Parameters
    ----------
    timesteps : tensor (m,)
        Timestep of each evaluation.
    inputs : tensor, float64 (m, 1 + d + m)
        Row i: the input of evaluation i; columns above d + i are 0.
    final : tensor, float64 (1 + d + m,)
        The final latents.
    """

    timesteps: torch.Tensor
    inputs: torch.Tensor
    final: torch.Tensor

    @property
    def draws(self) -> int:
        """Number of later draws of noise, d."""
        return self.inputs.shape[1] - 1 - len(self.inputs)


def step_table(scheduler: Any, steps: int) -> StepTable:
    """Compute the table of a scheduler.

    Parameters
    ----------
    scheduler : diffusers scheduler
        Not changed.
    steps : int
        Denoising steps; some schedulers evaluate the network once more.

    Returns
    -------
    StepTable

    Raises
    ------
    ModelError
        The scheduler is not linear.
    """
    count = len(_fresh(scheduler, steps).timesteps)
    draws = _count_draws(scheduler, steps, count)
    units = torch.eye(1 + draws + count, dtype=torch.float64)
    timesteps, inputs, final = _run(scheduler, steps, units, draws)
    some = 10 * torch.randn((1 + draws + count, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # clipping would show
    _, seen_inputs, seen = _run(scheduler, steps, some, draws)
    for expected, found in ((inputs @ some, seen_inputs), (final @ some, seen)):
        if not torch.allclose(expected, found, rtol=0, atol=LINEAR_TOLERANCE * float(some.abs().max())):
            raise ModelError(
                f"{type(scheduler).__name__}: expected a scheduler whose steps are linear (ddim, pndm, dpm++2m, unipc, euler, lcm), "
                "this one clips or thresholds: choose another [generator] scheduler, or backend eager"
            )
    return StepTable(timesteps, inputs, final)


def _fresh(scheduler: Any, steps: int) -> Any:
    fresh = copy.deepcopy(scheduler)
    fresh.set_timesteps(steps, device="cpu")
    return fresh


def _count_draws(scheduler: Any, steps: int, count: int) -> int:
    """Return how often a scheduler draws noise."""
    drawn: list[torch.Size] = []

    def draw(shape: torch.Size) -> torch.Tensor:
        drawn.append(shape)
        return torch.zeros(shape)

    fresh = _fresh(scheduler, steps)
    with drawing(fresh, draw):
        latents = torch.zeros((1, 1, 1, 1))
        for t in fresh.timesteps:
            fresh.scale_model_input(latents, t)
            latents = fresh.step(torch.zeros_like(latents), t, latents, return_dict=False)[0]
    return len(drawn)


def _run(scheduler: Any, steps: int, given: torch.Tensor, draws: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the scheduler over given noise, draws and outputs (1 + d + m, k).

    Returns
    -------
    timesteps : tensor (m,)
    inputs : tensor, float64 (m, k)
    final : tensor, float64 (k,)
    """
    fresh = _fresh(scheduler, steps)
    drawn = iter(given[1 : 1 + draws])
    latents = (given[0] * float(fresh.init_noise_sigma)).view(1, -1, 1, 1)
    inputs = []
    with drawing(fresh, lambda shape: next(drawn).view(shape)):
        for t, output in zip(fresh.timesteps, given[1 + draws :], strict=True):
            inputs.append(fresh.scale_model_input(latents, t).flatten().double())
            latents = fresh.step(output.view(1, -1, 1, 1), t, latents, return_dict=False)[0].double()
    return fresh.timesteps.clone(), torch.stack(inputs), latents.flatten()

"""Schedulers as tables: what each step of a denoising loop mixes, worked out once instead of in every picture.

The common schedulers for few steps are linear: what goes into the network at each step, and what comes out at the end, are fixed
combinations of the first noise and of the network's outputs so far (DDIM, PNDM, DPM-Solver++ and UniPC alike, whatever the network
predicts). The factors are found by running the scheduler itself on unit vectors. A loop over such a table needs no scheduler, no
synchronisation with the host and no state, so it can be captured as one CUDA graph.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from rtevo.errors import ModelError

__all__ = ["StepTable", "step_table"]

LINEAR_TOLERANCE = 1e-4
"""Largest relative deviation of the table from the scheduler: its own arithmetic is in single precision."""


@dataclass(frozen=True, eq=False)
class StepTable:
    """A denoising loop of m evaluations of the network.

    Row and column 0 stand for the noise that a picture starts from, N(0, I), row and column i + 1 for output i.

    Parameters
    ----------
    timesteps : tensor (m,)
        What the network is told at each evaluation.
    inputs : tensor, float64 (m, m + 1)
        Row i: what goes into evaluation i; columns above i are 0.
    final : tensor, float64 (m + 1,)
        The finished latents.
    """

    timesteps: torch.Tensor
    inputs: torch.Tensor
    final: torch.Tensor


def step_table(scheduler: Any, steps: int) -> StepTable:
    """Work out the table of a scheduler.

    Parameters
    ----------
    scheduler : diffusers scheduler
        Left as it is.
    steps : int
        Denoising steps asked for; some schedulers evaluate the network once more.

    Returns
    -------
    StepTable

    Raises
    ------
    ModelError
        The scheduler is not linear, or draws noise of its own.
    """
    count = len(_fresh(scheduler, steps).timesteps)
    units = torch.eye(count + 1, dtype=torch.float64)
    timesteps, inputs, final = _run(scheduler, steps, units[0], units[1:])
    some = 10 * torch.randn((count + 1, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # 10: clipping would show
    _, seen_inputs, seen = _run(scheduler, steps, some[0], some[1:])
    for expected, found in ((inputs @ some, seen_inputs), (final @ some, seen)):
        if not torch.allclose(expected, found, rtol=0, atol=LINEAR_TOLERANCE * float(some.abs().max())):
            raise ModelError(
                f"{type(scheduler).__name__}: expected a scheduler whose steps are linear and without noise (ddim, pndm, dpm++2m, unipc), "
                "this one clips, thresholds or draws: choose another [generator] scheduler, or backend eager"
            )
    return StepTable(timesteps, inputs, final)


def _fresh(scheduler: Any, steps: int) -> Any:
    fresh = copy.deepcopy(scheduler)
    fresh.set_timesteps(steps, device="cpu")
    return fresh


def _run(scheduler: Any, steps: int, noise: torch.Tensor, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the scheduler over outputs (m, k) that are known beforehand: timesteps (m,), inputs (m, k) and final latents (k,)."""
    fresh = _fresh(scheduler, steps)
    latents = (noise * float(fresh.init_noise_sigma)).view(1, -1, 1, 1)
    inputs = []
    for t, output in zip(fresh.timesteps, outputs, strict=True):
        inputs.append(fresh.scale_model_input(latents, t).flatten().double())
        latents = fresh.step(output.view(1, -1, 1, 1), t, latents, return_dict=False)[0].double()
    return fresh.timesteps.clone(), torch.stack(inputs), latents.flatten()

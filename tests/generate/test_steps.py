"""Schedulers as tables: the same numbers as the scheduler itself, for everything that the network might say."""

from __future__ import annotations

from typing import Any

import pytest

from rtevo.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers")

TOLERANCE = 2e-5
"""Relative: the schedulers' own arithmetic is in single precision."""

NOISE: dict[str, Any] = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def make(kind: str, **options: Any) -> Any:
    import diffusers

    return getattr(diffusers, kind)(**NOISE, **options)


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("DDIMScheduler", {"clip_sample": False}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("DPMSolverMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {}),
        ("EulerDiscreteScheduler", {}),  # scales what goes into the network, and the noise
    ],
)
def test_a_table_is_its_scheduler(kind: str, options: dict[str, Any], steps: int, prediction: str) -> None:
    import torch

    from rtevo.generate.steps import step_table

    scheduler = make(kind, prediction_type=prediction, **options)
    table = step_table(scheduler, steps)
    draw = torch.Generator().manual_seed(3)
    noise = torch.randn((1, 4, 5, 5), generator=draw)
    scheduler.set_timesteps(steps)
    assert torch.equal(table.timesteps, scheduler.timesteps)
    latents, history = noise * scheduler.init_noise_sigma, [noise.flatten().double()]
    for i, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(latents, t)
        mine = table.inputs[i, : i + 1] @ torch.stack(history)
        torch.testing.assert_close(mine, seen.flatten().double(), rtol=TOLERANCE, atol=TOLERANCE * float(seen.abs().max()))
        assert not table.inputs[i, i + 1 :].any()
        output = torch.tanh(3 * seen + 0.1 * i)  # a network that is not linear
        history.append(output.flatten().double())
        latents = scheduler.step(output, t, latents, return_dict=False)[0]
    mine = table.final @ torch.stack(history)
    torch.testing.assert_close(mine, latents.flatten().double(), rtol=TOLERANCE, atol=TOLERANCE * float(latents.abs().max()))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    ("kind", "options"), [("LCMScheduler", {}), ("DDPMScheduler", {"clip_sample": False}), ("EulerAncestralDiscreteScheduler", {})]
)
def test_noise_that_is_drawn_on_the_way_has_columns_of_its_own(kind: str, options: dict[str, Any], steps: int) -> None:
    import torch

    from rtevo.generate.parts import drawing
    from rtevo.generate.steps import step_table

    scheduler = make(kind, **options)
    table = step_table(scheduler, steps)
    assert table.draws > 0 or steps == 1
    draw = torch.Generator().manual_seed(3)
    noise, *drawn = torch.randn((1 + table.draws, 1, 4, 5, 5), generator=draw)
    scheduler.set_timesteps(steps)
    latents, history = noise * scheduler.init_noise_sigma, [part.flatten().double() for part in (noise, *drawn)]
    waiting = iter(drawn)
    with drawing(scheduler, lambda _: next(waiting)):
        for i, t in enumerate(scheduler.timesteps):
            seen = scheduler.scale_model_input(latents, t)
            mine = table.inputs[i, : len(history)] @ torch.stack(history)
            torch.testing.assert_close(mine, seen.flatten().double(), rtol=TOLERANCE, atol=TOLERANCE * float(seen.abs().max()))
            output = torch.tanh(3 * seen + 0.1 * i)
            history.append(output.flatten().double())
            latents = scheduler.step(output, t, latents, return_dict=False)[0]
    mine = table.final @ torch.stack(history)
    torch.testing.assert_close(mine, latents.flatten().double(), rtol=TOLERANCE, atol=TOLERANCE * float(latents.abs().max()))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("DDIMScheduler", {"clip_sample": True}), ("DDPMScheduler", {"clip_sample": True}), ("LCMScheduler", {"clip_sample": True})],
)
def test_schedulers_that_clip_are_refused(kind: str, options: dict[str, Any]) -> None:
    from rtevo.generate.steps import step_table

    with pytest.raises(ModelError, match=f"{kind}: expected a scheduler whose steps are linear"):
        step_table(make(kind, **options), 5)

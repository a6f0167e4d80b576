"""Shared parts of the stages of :mod:`tiny_unclip`: sizes, networks, training, files."""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from emoji_pictures import SIDE, Pictures
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

EMBEDDING = 64
TOKENS = 16
VOCABULARY = 1500
LATENT_SIDE = SIDE // 4
VIEWS = 32  # augmentations of each picture for the diffusion network; the first is the picture itself
PIECE = 15 << 20  # bytes of the largest file
STEPS = {"clip": 2000, "judge": 4000, "vae": 6000, "unet": 6100}
BATCH = {"clip": 1024, "judge": 512, "vae": 256, "unet": 512}
RATE = {"clip": 1e-3, "judge": 1e-3, "vae": 6e-4, "unet": 1.2e-3}
SEED = {"clip": 1, "judge": 2, "vae": 3, "unet": 4, "evaluate": 5}


# --- networks ---------------------------------------------------------------------------------------------------------------------


def vision_tower() -> Any:
    """Image encoder, 1.9 M weights: 64 patches of 8 x 8 pixels."""
    config = transformers.CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=5,
        image_size=SIDE,
        patch_size=8,
        projection_dim=EMBEDDING,
    )
    return transformers.CLIPVisionModelWithProjection(config)


def text_tower(vocabulary: int) -> Any:
    """Text encoder, 0.2 M weights."""
    config = transformers.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=EMBEDDING,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return transformers.CLIPTextModelWithProjection(config)


def autoencoder() -> Any:
    """Autoencoder, 1.7 M weights."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=1.0,  # latents have unit variance inside the network
    )


def diffuser() -> Any:
    """Diffusion network, 11.6 M weights."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(96, 160, 192),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,  # number of heads: the name is wrong for old models
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * EMBEDDING,
        use_linear_projection=True,
    )


class Judge(nn.Module):
    """A participant's eye, 0.7 M weights: four strided convolutions and a linear layer; simple enough to run in NumPy."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise(widths))
        self.out = nn.Linear(widths[-1] * 16, EMBEDDING)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return embeddings (n, e) of length 1 of pictures (n, 3, 64, 64), 0 to 1."""
        x = 2 * pictures - 1
        for layer in self.convolutions:
            x = layer(x).relu()
        return functional.normalize(self.out(x.flatten(1)), dim=1)


def noise_schedule() -> Any:
    """Return the diffusion's schedule: cosine, which ends in pure noise."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )


def embedding_schedule() -> Any:
    """Return the schedule of the noise that is added to embeddings."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")


# --- tools ------------------------------------------------------------------------------------------------------------------------


class Run:
    """State of all stages: device, working folder, log, and length of training.

    Parameters
    ----------
    options : argparse.Namespace
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(options.device)
        self.share: float = options.share
        self.until_s: float = time.monotonic() + min(options.until, 1e9)
        self.font: Path | None = options.font
        self.emojibase: Path | None = options.emojibase
        self.compile: bool = options.compile
        self.started = time.monotonic()
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True

    def say(self, text: str) -> None:
        """Log one line."""
        line = f"[{time.monotonic() - self.started:6.1f} s] {text}"
        print(line, flush=True)
        with (self.work / "log.txt").open("a") as log:
            log.write(line + "\n")

    def steps(self, stage: str) -> int:
        """Return the optimiser steps of a stage."""
        return max(2, round(STEPS[stage] * self.share))

    def batch(self, stage: str) -> int:
        """Pictures in a step."""
        return BATCH[stage] if self.share >= 0.02 else 16

    def count(self, n: int) -> int:
        """Return how many of `n` pictures to use; fewer in a trial."""
        return n if self.share >= 0.02 else 8

    def draw(self, stage: str) -> torch.Generator:
        """Seed everything for a stage."""
        torch.manual_seed(SEED[stage])
        return torch.Generator(self.device).manual_seed(SEED[stage])

    def pictures(self) -> tuple[Pictures, torch.Tensor, torch.Tensor]:
        """Return the pictures, their pixels on the device, and each one's frequency."""
        found = Pictures.load(self.work / "pictures.npz")
        if self.share < 0.02:  # a trial
            found = found.some(np.arange(1, len(found.names), 24))
        return found, torch.from_numpy(found.rgba).to(self.device), torch.from_numpy(found.share).to(self.device)

    def compiled(self, function: Any) -> Any:
        """Return the function, compiled if there is a GPU."""
        return torch.compile(function, dynamic=False) if self.compile and self.device.type == "cuda" else function

    def half(self) -> Any:
        """Automatic bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


class Trainer:
    """AdamW with warm-up, a constant rate and a linear end; the result is an exponential average of the weights."""

    def __init__(self, run: Run, stage: str, modules: list[nn.Module], decay: float = 0.05, average: float = 0.999, done: int = 0) -> None:
        self.run, self.stage, self.total, self.done, self.first = run, stage, run.steps(stage), done, done
        self.modules = modules
        self.weights: list[torch.Tensor] = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.averages = [p.detach().clone() for p in self.weights]
        groups = [
            {"params": [p for p in self.weights if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in self.weights if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=RATE[stage], betas=(0.9, 0.99), fused=True)
        self.average = average
        self.losses: dict[str, torch.Tensor] = {}
        self.began = time.monotonic()

    def __iter__(self) -> Iterator[int]:
        while self.done < self.total and time.monotonic() < self.run.until_s:
            yield self.done
            self.done += 1

    def step(self, loss: torch.Tensor, **parts: torch.Tensor) -> None:
        """Take one step down `loss`; `parts` are logged."""
        warm = min((self.done - self.first + 1) / min(300, self.total), 1)
        left = min((self.total - self.done) / self.total, (self.run.until_s - time.monotonic()) / (self.run.until_s - self.began))
        rate = RATE[self.stage] * warm * min(max(left, 0) / 0.4, 1)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.weights, 1.0, foreach=True)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1 - min(self.average, (self.done + 1) / (self.done + 10)))
            for name, value in {"loss": loss, **parts}.items():
                self.losses[name] = self.losses.get(name, value.detach()).lerp(value.detach(), 0.02)
        if self.done % max(1, self.total // 12) == 0 or self.done == self.total - 1:
            pace = (self.done - self.first + 1) / (time.monotonic() - self.began)
            said = ", ".join(f"{name} {float(value):.4f}" for name, value in self.losses.items())
            self.run.say(f"{self.stage} {self.done + 1}/{self.total}: {said}; {pace:.1f} steps/s")

    def finish(self) -> None:
        """Replace the weights by their averages."""
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.averages)
        for module in self.modules:
            module.eval()


def write_weights(folder: Path, name: str, state: dict[str, torch.Tensor]) -> None:
    """Write weights in half precision, in files of 15 MB at most."""
    pieces: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for key, value in state.items():
        half = value.detach().to("cpu", torch.float16).contiguous() if value.is_floating_point() else value.cpu()
        size += half.nbytes
        if size > PIECE:
            pieces.append({})
            size = half.nbytes
        pieces[-1][key] = half
    for old in folder.glob(f"{name}.*.safetensors"):
        old.unlink()
    for i, piece in enumerate(pieces):
        save_file(piece, folder / f"{name}.{i}.safetensors")


def read_weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Read weights from :func:`write_weights`, in single precision; empty if there are none."""
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob(f"{name}.*.safetensors")):
        state |= {key: value.float() if value.is_floating_point() else value for key, value in load_file(file).items()}
    return state


def contact_sheet(file: Path, rows: list[torch.Tensor], columns: int = 16) -> None:
    """Write rows of pictures (n, 3, 64, 64): the first `columns` of each row's tensor, then the next, and so on."""
    from PIL import Image

    count = math.ceil(len(rows[0]) / columns)
    lines = []
    for i in range(count):
        for row in rows:
            part = row[i * columns : (i + 1) * columns].float().cpu().clamp(0, 1)
            part = functional.pad(part, (0, 0, 0, 0, 0, 0, 0, columns - len(part)), value=1.0)
            lines.append(torch.cat(list(part), 2))
    pixels = (torch.cat(lines, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file)


def for_vision(pictures: torch.Tensor) -> torch.Tensor:
    """Return pictures (0 to 1) normalised for the image encoder with CLIP's means and deviations."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=pictures.device).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=pictures.device).view(3, 1, 1)
    return (pictures - mean) / deviation

"""The kinds of models behind one protocol: each one's input of the embedding, denoising and decoding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from rtevo.errors import ConfigError
from rtevo.generate.adapted import Adapted
from rtevo.generate.base import GeneratorSettings
from rtevo.generate.denoiser import Denoiser, KandinskyDenoiser
from rtevo.generate.folder import ADAPTER, ADAPTER_XL, KANDINSKY, PIPELINE, ModelFolder
from rtevo.generate.loading import load_kandinsky, load_pipeline, load_tiny_decoder
from rtevo.generate.parts import network_labels

__all__ = ["Kandinsky", "Model", "StableUnclip", "load_model"]

Tell = Callable[[str], None] | None


class Model(Protocol):
    """A loaded model on its device.

    Attributes
    ----------
    pipe : diffusers pipeline
        With `image_encoder` and `feature_extractor`.
    condition_size : int
        Size of the network's condition for one embedding, k.
    noise_size : int
        Amount of noise drawn before a picture's latents, whether or not the network uses it.
    draws_alike : bool
        Whether a scheduler's later noise is drawn like the first: on the CPU, in single precision.
    """

    pipe: Any
    condition_size: int
    noise_size: int
    draws_alike: bool

    def condition(self, embeddings: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the network's conditions, float32 (n, k), for embeddings and their noise, float32 (n, e); on the CPU."""
        ...

    def denoise(self, condition: torch.Tensor, latents: torch.Tensor, generators: Sequence[torch.Generator], steps: int) -> torch.Tensor:
        """Run the unchanged pipeline: from a condition (n, k) and noise N(0, I) (n, c, h, w) to latents (n, c, h, w)."""
        ...

    def denoiser(self, timesteps: torch.Tensor) -> nn.Module:
        """Return one guided evaluation of the network, with all constants precomputed; this changes the pipeline."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the images (n, 3, H, W), -1 to 1, of latents (n, c, h, w)."""
        ...


class StableUnclip:
    """Stable unCLIP: the noised embedding enters the network as class labels; the prompt is always empty."""

    def __init__(self, folder: ModelFolder, settings: GeneratorSettings, device: torch.device, dtype: torch.dtype, tell: Tell) -> None:
        self.settings, self.folder, self.device, self.dtype = settings, folder, device, dtype
        self.pipe = pipe = load_pipeline(folder, device, dtype, tell)
        if settings.tiny_vae is not None:
            pipe.vae = load_tiny_decoder(settings.tiny_vae, folder, dtype).to(device)
        self.condition_size, self.noise_size, self.draws_alike = 2 * folder.embedding_size, folder.embedding_size, False
        self._normalizer = pipe.image_normalizer.to("cpu", torch.float32)
        with torch.no_grad():
            self.prompt: torch.Tensor = pipe.encode_prompt("", device, 1, False)[0]
        pipe.text_encoder = pipe.tokenizer = None  # only the empty prompt is used
        pipe.noise_image_embeddings = lambda image_embeds, **_: image_embeds  # they are noised already

    def condition(self, embeddings: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return noised embedding and noise level; see :class:`Model`."""
        return network_labels(embeddings, noise, self.settings.noise_level, self._normalizer, self.pipe.image_noising_scheduler)

    def denoise(self, condition: torch.Tensor, latents: torch.Tensor, generators: Sequence[torch.Generator], steps: int) -> torch.Tensor:
        """See :class:`Model`."""
        count, guidance_scale = len(condition), self.settings.guidance_scale
        scaled = latents * float(self.pipe.scheduler.init_noise_sigma)  # the pipeline does not scale given latents
        found: torch.Tensor = self.pipe(
            image_embeds=condition.to(self.device, self.dtype),
            prompt_embeds=self.prompt.expand(count, -1, -1),
            negative_prompt_embeds=self.prompt.expand(count, -1, -1) if guidance_scale > 1 else None,
            latents=scaled.to(self.device, self.dtype),
            generator=list(generators),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            noise_level=self.settings.noise_level,
            height=self.folder.image_size[0],
            width=self.folder.image_size[1],
            output_type="latent",
            return_dict=False,
        )[0]
        return found

    def denoiser(self, timesteps: torch.Tensor) -> Denoiser:
        """See :class:`Model`."""
        return Denoiser(self.pipe.unet, self.prompt, timesteps, self.settings.guidance_scale, self.folder.latent_shape[1:])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See :class:`Model`."""
        vae = self.pipe.vae
        image: torch.Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return image


class Kandinsky:
    """Kandinsky 2.2's decoder: the embedding enters the network unchanged; the unguided half uses a black picture's."""

    def __init__(self, folder: ModelFolder, settings: GeneratorSettings, device: torch.device, dtype: torch.dtype, tell: Tell) -> None:
        if settings.tiny_vae is not None:
            raise ConfigError(
                f"[generator] tiny_vae: expected none for Kandinsky, whose latents no tiny decoder fits, got {settings.tiny_vae}"
            )
        self.settings, self.folder, self.device, self.dtype = settings, folder, device, dtype
        self.pipe = load_kandinsky(folder, device, dtype, tell)
        self.condition_size = self.noise_size = folder.embedding_size
        self.draws_alike = False
        side = self.pipe.image_encoder.config.image_size
        with torch.no_grad():  # KandinskyV22PriorPipeline.get_zero_embed
            self.nothing: torch.Tensor = self.pipe.image_encoder(torch.zeros(1, 3, side, side, dtype=dtype, device=device)).image_embeds

    def condition(self, embeddings: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the embeddings: this network has no input for noise; see :class:`Model`."""
        return embeddings

    def denoise(self, condition: torch.Tensor, latents: torch.Tensor, generators: Sequence[torch.Generator], steps: int) -> torch.Tensor:
        """See :class:`Model`."""
        with _any_scheduler(self.pipe.scheduler):
            return self._denoise(condition, latents, generators, steps)

    def _denoise(self, condition: torch.Tensor, latents: torch.Tensor, generators: Sequence[torch.Generator], steps: int) -> torch.Tensor:
        found: torch.Tensor = self.pipe(
            image_embeds=condition.to(self.device, self.dtype),
            negative_image_embeds=self.nothing.expand(len(condition), -1),
            latents=latents.to(self.device, self.dtype),
            generator=list(generators),
            num_inference_steps=steps,
            guidance_scale=self.settings.guidance_scale,
            height=self.folder.image_size[0],
            width=self.folder.image_size[1],
            output_type="latent",
            return_dict=False,
        )[0]
        return found

    def denoiser(self, timesteps: torch.Tensor) -> KandinskyDenoiser:
        """See :class:`Model`."""
        return KandinskyDenoiser(self.pipe.unet, self.nothing, timesteps, self.settings.guidance_scale)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See :class:`Model`."""
        image: torch.Tensor = self.pipe.movq.decode(latents, force_not_quantize=True, return_dict=False)[0]
        return image


@contextmanager
def _any_scheduler(scheduler: Any) -> Iterator[None]:
    """Make a scheduler accept a generator at each step, as from Kandinsky's pipeline, whether or not it draws."""
    step = scheduler.step
    if "generator" in inspect.signature(step).parameters:
        yield
        return
    scheduler.step = lambda *given, generator=None, **others: step(*given, **others)
    try:
        yield
    finally:
        del scheduler.step


def load_model(folder: ModelFolder, settings: GeneratorSettings, device: torch.device, dtype: torch.dtype, tell: Tell = None) -> Model:
    """Load a model of any kind.

    Raises
    ------
    ModelError
        The libraries cannot load the folder, or weights are missing in it.
    ConfigError
        The settings request a feature that this kind does not have.
    """
    kinds: dict[str, Callable[..., Model]] = {PIPELINE: StableUnclip, KANDINSKY: Kandinsky, ADAPTER: Adapted, ADAPTER_XL: Adapted}
    return kinds[folder.kind](folder, settings, device, dtype, tell)

"""The reference backend: the diffusers pipeline as it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from rtevo.errors import ModelError
from rtevo.generate.base import GeneratorSettings, Painted, check_request
from rtevo.generate.folder import ModelFolder
from rtevo.generate.loading import load_pipeline, pick_device, with_scheduler
from rtevo.generate.parts import draw_noise, network_labels, to_pixels

__all__ = ["EagerGenerator"]

log = logging.getLogger(__name__)


class EagerGenerator:
    """Paints with ``StableUnCLIPImg2ImgPipeline``, called with ``image_embeds``.

    Two things are done outside the pipeline, so that a picture is the same on every device: noise is drawn on the CPU in single
    precision, and the embedding is noised there. In single precision the result is the plain pipeline's, bit for bit.

    Parameters
    ----------
    folder : ModelFolder
    settings : GeneratorSettings
    on_progress : callable, optional
        Told, in one line, what is being done.

    Raises
    ------
    ModelError
        The folder cannot be loaded, the device is not there or its memory does not suffice.
    """

    backend = "eager"

    def __init__(self, folder: ModelFolder, settings: GeneratorSettings, on_progress: Callable[[str], None] | None = None) -> None:
        self.device = pick_device(settings.device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.settings, self.folder = settings, folder
        self.embedding_size, self.image_size = folder.embedding_size, folder.image_size
        if self.device.type == "cpu":
            torch.set_num_threads(settings.threads)
        with self._out_of_memory():
            pipe = load_pipeline(folder, self.device, self.dtype, on_progress)
            pipe.scheduler = with_scheduler(pipe.scheduler, settings.scheduler)
            pipe.scheduler.set_timesteps(settings.steps, device=self.device)
            self._sigma = float(pipe.scheduler.init_noise_sigma)
            self._normalizer = pipe.image_normalizer.to("cpu", torch.float32)
            self._guided = settings.guidance_scale > 1
            self._prompt = self._empty_prompt(pipe)
        pipe.noise_image_embeddings = lambda image_embeds, **_: image_embeds  # they come noised
        self._pipe: Any = pipe
        self.description = self._describe()
        log.info("generator: %s", self.description)

    def paint(self, embeddings: ArrayLike, seeds: ArrayLike) -> Iterator[Painted]:
        """Paint images one by one; see :meth:`rtevo.generate.Generator.paint`."""
        if self._pipe is None:
            raise ValueError("generator: expected an open one, this one has been closed")
        return self._paint(*check_request(embeddings, seeds, self.embedding_size))

    def warm_up(self) -> None:
        """Paint one image and forget it; see :meth:`rtevo.generate.Generator.warm_up`."""
        count = self.settings.batch
        embeddings = np.random.default_rng(0).standard_normal((count, self.embedding_size), np.float32)
        for _ in self.paint(embeddings, np.arange(count, dtype=np.uint64)):
            pass

    def close(self) -> None:
        """Free the device."""
        self._pipe = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _paint(self, embeddings: NDArray[np.float32], seeds: list[int]) -> Iterator[Painted]:
        for start in range(0, len(seeds), self.settings.batch):
            part = slice(start, start + self.settings.batch)
            with self._computing():
                latents = self._denoise(torch.from_numpy(embeddings[part]), seeds[part])
            for i in range(len(latents)):
                with self._computing():
                    pixels, embedding = self._finish(latents[i : i + 1])
                yield Painted(start + i, pixels, embedding)

    def _denoise(self, embeddings: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        """From embeddings (n, e) to latents (n, c, h, w)."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise, latents = draw_noise(generators, self.embedding_size, self.folder.latent_shape)
        pipe = self._pipe
        labels = network_labels(embeddings, noise, self.settings.noise_level, self._normalizer, pipe.image_noising_scheduler)
        count = len(seeds)
        found: torch.Tensor = pipe(
            image_embeds=labels.to(self.device, self.dtype),
            prompt_embeds=self._prompt.expand(count, -1, -1),
            negative_prompt_embeds=self._prompt.expand(count, -1, -1) if self._guided else None,
            latents=(latents * self._sigma).to(self.device, self.dtype),
            generator=generators,
            num_inference_steps=self.settings.steps,
            guidance_scale=self.settings.guidance_scale,
            noise_level=self.settings.noise_level,
            height=self.image_size[0],
            width=self.image_size[1],
            output_type="latent",
            return_dict=False,
        )[0]
        return found

    def _finish(self, latents: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """From latents (1, c, h, w) to pixels (H, W, 3) and what they re-encode to (e,)."""
        pixels = to_pixels(self._decode(latents)[0])
        return pixels, self._encode(pixels)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """From latents (1, c, h, w) to an image (1, 3, H, W), -1 to 1."""
        vae = self._pipe.vae
        image: torch.Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return image

    def _encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embedding (e,) of pixels (H, W, 3), as the pipeline encodes a picture that it is given."""
        seen = self._pipe.feature_extractor(images=Image.fromarray(pixels), return_tensors="pt").pixel_values
        embedding = self._pipe.image_encoder(seen.to(self.device, self.dtype)).image_embeds[0].float().cpu()
        if not torch.isfinite(embedding).all():
            raise ModelError(
                "image encoder: expected finite numbers for a picture, got others (weights damaged, or half precision overflowed)"
            )
        return np.asarray(embedding.numpy(), np.float32)

    def _empty_prompt(self, pipe: Any) -> torch.Tensor:
        """Text embedding (1, t, c) of the empty prompt, the only one ever used; the text encoder is let go."""
        with torch.no_grad():
            prompt: torch.Tensor = pipe.encode_prompt("", self.device, 1, False)[0]
        pipe.text_encoder = pipe.tokenizer = None
        return prompt

    def _describe(self) -> str:
        device = f"cpu ({torch.get_num_threads()} threads)" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        height, width = self.image_size
        return (
            f"{self.backend}, {device}, {str(self.dtype).removeprefix('torch.')}, {type(self._pipe.scheduler).__name__}, "
            f"{self.settings.steps} steps, guidance {self.settings.guidance_scale:g}, {width} x {height} px, model {self.folder.path.name}"
        )

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute without gradients; never held across a yield to the caller."""
        with self._out_of_memory(), torch.inference_mode():
            yield

    @contextmanager
    def _out_of_memory(self) -> Iterator[None]:
        """Turn running out of the device's memory into a ModelError."""
        try:
            yield
        except torch.OutOfMemoryError as problem:
            raise ModelError(
                f"generator on {self.device}: out of memory with batch {self.settings.batch} at {self.image_size[1]} x "
                f"{self.image_size[0]} px; close other programs that use the device, or lower [generator] batch ({problem})"
            ) from problem

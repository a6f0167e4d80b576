"""The compiled backend: the whole of a picture as two captured graphs over static buffers.

One graph is the denoising loop, from the noised embedding to the latents; the other decodes one picture, turns it into pixels and
re-encodes it. Neither waits for the host inside. On CUDA the networks go through ``torch.compile`` and the graphs are CUDA graphs; on
a CPU the same code runs as it is, without either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rtevo.errors import ModelError
from rtevo.generate.base import GeneratorSettings, Painted
from rtevo.generate.denoiser import Denoiser
from rtevo.generate.eager import EagerGenerator
from rtevo.generate.folder import ModelFolder
from rtevo.generate.parts import draw_noise, network_labels, pixel_problem
from rtevo.generate.steps import step_table
from rtevo.generate.viewer import Viewer

__all__ = ["CompiledGenerator"]

log = logging.getLogger(__name__)

VERIFY_TOLERANCE = 6.0
"""Mean absolute difference between a picture and the reference backend's, grey levels: half precision rounds otherwise, step by step."""


class CompiledGenerator(EagerGenerator):
    """Paints like :class:`EagerGenerator`, several times as fast on a GPU.

    The picture is the same up to rounding: latents are kept in single precision between steps, and the first picture is compared with
    the reference's before any is shown.

    Parameters
    ----------
    folder : ModelFolder
    settings : GeneratorSettings
    on_progress : callable, optional
        Told, in one line, what is being done: compiling takes a minute.
    compiler : str, optional
        Backend of ``torch.compile``. Default: ``inductor`` on CUDA, none on a CPU.

    Raises
    ------
    ModelError
        As for :class:`EagerGenerator`; or the scheduler or the network has parts that this backend does not know.
    """

    backend = "compiled"

    def __init__(
        self,
        folder: ModelFolder,
        settings: GeneratorSettings,
        on_progress: Callable[[str], None] | None = None,
        compiler: str | None = None,
    ) -> None:
        super().__init__(folder, settings, on_progress)
        self._tell = on_progress or (lambda _: None)
        self._compiler = compiler or ("inductor" if self.device.type == "cuda" else None)
        self._wanted = self._sample(super()._denoise, super()._finish)
        self._verified = False
        pipe = self._pipe
        table = step_table(pipe.scheduler, settings.steps)
        self._inputs, self._final = (t.to(self.device, torch.float32) for t in (table.inputs, table.final))
        self._denoiser = Denoiser(pipe.unet, self._prompt, table.timesteps, settings.guidance_scale)
        self._viewer = Viewer(pipe.feature_extractor.to_dict()).to(self.device)
        if self.device.type == "cuda":
            pipe.unet.to(memory_format=torch.channels_last)
            pipe.vae.to(memory_format=torch.channels_last)
        self._evaluate, self._view = self._compiled(self._denoiser), self._compiled(self._decode_and_encode)
        shape = (settings.batch, *folder.latent_shape)
        self._labels = torch.zeros((settings.batch, 2 * folder.embedding_size), dtype=self.dtype, device=self.device)
        self._history = torch.zeros((len(table.final), *shape), device=self.device)  # noise, then the network's outputs
        self._latents = torch.zeros(shape, device=self.device)
        self._one = torch.zeros((1, *folder.latent_shape), device=self.device)
        self._picture: tuple[torch.Tensor, ...] = ()
        self._loop, self._look = _Graph(self._run_loop, self.device), _Graph(self._run_look, self.device)

    def warm_up(self) -> None:
        """Compile, capture, and compare a picture with the reference's; see :meth:`rtevo.generate.Generator.warm_up`.

        Raises
        ------
        ModelError
            The picture is not the reference's.
        """
        self._tell("compiling and capturing" if self._compiler else "warming up")
        with self._computing():
            found = self._sample(self._denoise, self._finish)
        apart = float(np.abs(found.astype(np.float64) - self._wanted).mean())
        log.info("generator: compiled picture %.2f grey levels from the reference", apart)
        if not apart <= VERIFY_TOLERANCE:
            raise ModelError(
                f"compiled generator: expected the reference's picture within {VERIFY_TOLERANCE:g} grey levels on average, found it "
                f"{apart:.1f} away: choose backend eager"
            )
        self._verified = True

    def close(self) -> None:
        """Free the device."""
        self._loop, self._look = (_Graph(_closed, self.device) for _ in range(2))
        self._picture = ()
        del self._denoiser, self._evaluate, self._view
        super().close()

    def _paint(self, embeddings: NDArray[np.float32], seeds: list[int]) -> Iterator[Painted]:
        if not self._verified:
            self.warm_up()
        yield from super()._paint(embeddings, seeds)

    def _denoise(self, embeddings: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise, latents = draw_noise(generators, self.embedding_size, self.folder.latent_shape)
        schedule = self._pipe.image_noising_scheduler
        labels = network_labels(embeddings, noise, self.settings.noise_level, self._normalizer, schedule)
        count = len(seeds)
        self._labels[:count].copy_(labels)  # rows beyond keep what they had: nobody looks at them
        self._history[0, :count].copy_(latents)
        self._loop()
        return self._latents[:count]

    def _finish(self, latents: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        self._one.copy_(latents)
        self._look()
        pixels, embedding, broken = (part.cpu().numpy() for part in self._picture)
        problem = pixel_problem(int(broken), pixels) or ("" if np.isfinite(embedding).all() else "embedding: expected finite numbers")
        if problem:
            raise ModelError(problem)
        return np.array(pixels), np.array(embedding)

    def _run_loop(self) -> None:
        """From labels and noise to latents, all static buffers."""
        flat = self._history.flatten(1)
        embedding = self._denoiser.embed(self._labels)
        for i, row in enumerate(self._inputs):
            latents = (row[: i + 1] @ flat[: i + 1]).view_as(self._latents)
            self._history[i + 1].copy_(self._evaluate(latents, self._denoiser.time_embeddings[i : i + 1], embedding))
        self._latents.copy_((self._final @ flat).view_as(self._latents))

    def _run_look(self) -> None:
        """From one picture's latents to its pixels and embedding."""
        found = self._view(self._one)
        if self._picture:
            for static, fresh in zip(self._picture, found, strict=True):
                static.copy_(fresh)
        else:
            self._picture = tuple(part.clone() for part in found)

    def _decode_and_encode(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pixels uint8 (H, W, 3), embedding float32 (e,), and how many numbers of the picture are not finite."""
        image = self._decode(latents.to(self.dtype))[0].float()
        broken = (~torch.isfinite(image)).sum()
        levels = (image / 2 + 0.5).clamp(0, 1).mul(255).round().nan_to_num()
        embedding = self._pipe.image_encoder(self._viewer(levels).to(self.dtype)).image_embeds[0].float()
        return levels.to(torch.uint8).permute(1, 2, 0).contiguous(), embedding, broken

    def _sample(self, denoise: Callable[..., torch.Tensor], finish: Callable[..., Any]) -> NDArray[np.uint8]:
        """Paint one picture, always the same, by the steps given."""
        embeddings = torch.from_numpy(np.random.default_rng(0).standard_normal((1, self.embedding_size), np.float32))
        with self._computing():
            pixels: NDArray[np.uint8] = finish(denoise(embeddings, [0])[:1])[0]
        return pixels

    def _compiled(self, function: Any) -> Any:
        return torch.compile(function, backend=self._compiler, fullgraph=True, dynamic=False) if self._compiler else function

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with self._out_of_memory(), torch.no_grad():  # not inference mode: compiled code may be called without it later
            yield


class _Graph:
    """A function over static buffers: captured at its first call on CUDA and replayed from then on, simply called elsewhere."""

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._function, self._device = function, device
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self._device.type != "cuda":
            self._function()
            return
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Warm up on a side stream, as capture demands, then record."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._function()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._function()
        return graph


def _closed() -> None:
    raise ValueError("generator: expected an open one, this one has been closed")

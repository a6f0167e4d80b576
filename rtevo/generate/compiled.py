"""The compiled backend: a whole picture as two captured graphs over static buffers.

One graph is the denoising loop, from the noised embedding to the latents; the other decodes one picture, converts it to pixels and
re-encodes it. Neither waits for the host inside, and the loop of the next picture runs while the host fetches this one. On CUDA the
networks go through ``torch.compile`` and the graphs are CUDA graphs; on a CPU the same code runs without either.
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
from rtevo.generate.channels_last import rework, rework_encoder
from rtevo.generate.eager import EagerGenerator
from rtevo.generate.folder import ModelFolder
from rtevo.generate.graphs import Graph
from rtevo.generate.parts import pixel_problem
from rtevo.generate.steps import step_table
from rtevo.generate.viewer import Viewer

__all__ = ["CompiledGenerator"]

log = logging.getLogger(__name__)

VERIFY_TOLERANCE = 6.0
"""Mean absolute difference between a picture and the reference backend's, grey levels: half precision rounds differently at each step."""


class CompiledGenerator(EagerGenerator):
    """Paints like :class:`EagerGenerator`, but several times as fast on a GPU.

    The pictures are the same up to rounding: latents stay in single precision between steps, and the first picture is compared with the
    reference's before any is shown.

    Parameters
    ----------
    folder : ModelFolder
    settings : GeneratorSettings
    on_progress : callable, optional
        Called with one line for each step of the work: compiling takes a minute.
    compiler : str, optional
        Backend of ``torch.compile``. Default: ``inductor`` on CUDA, none on a CPU.
    rewritten : bool
        Whether known parts of diffusers' networks are rewritten (:mod:`rtevo.generate.channels_last`); False only to measure the gain.

    Attributes
    ----------
    apart : float
        Mean absolute difference of the first picture from the reference's, grey levels; not a number before :meth:`warm_up`.

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
        rewritten: bool = True,
    ) -> None:
        self._rewritten = rewritten
        self._loops: dict[int, _Loop] = {}
        self._picture: tuple[torch.Tensor, ...] = ()
        self._denoiser: Any = None
        self._look: Any = None
        super().__init__(folder, settings, on_progress)
        self._tell = on_progress or (lambda _: None)
        self._compiler = compiler or ("inductor" if self.device.type == "cuda" else None)
        self._wanted = self._sample(super()._denoise, super()._finish)
        self._verified, self.apart = False, float("nan")
        self._denoiser = self._model.denoiser(step_table(self._pipe.scheduler, settings.steps).timesteps)
        self._viewer = Viewer(self._pipe.feature_extractor.to_dict()).to(self.device)
        self._evaluate, self._view = self._networks()
        self._one = torch.zeros((1, *self.folder.latent_shape), device=self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # graphs have their own memory: they cannot use what the reference has freed
        self._schedule()

    def warm_up(self) -> None:
        """Compile, capture, and compare the first picture with the reference's; see :meth:`rtevo.generate.Generator.warm_up`.

        Raises
        ------
        ModelError
            The picture differs from the reference's.
        """
        if not self._verified:
            self._tell("compiling and capturing" if self._compiler else "warming up")
            self._verify()
        super().warm_up()

    def _verify(self) -> None:
        found = self._sample(self._denoise, self._finish)
        apart = float(np.abs(found.astype(np.float64) - self._wanted).mean())
        log.info("generator: %s picture %.2f grey levels from the reference", self.backend, apart)
        if not apart <= VERIFY_TOLERANCE:
            raise ModelError(
                f"{self.backend} generator: expected the reference's picture within {VERIFY_TOLERANCE:g} grey levels on average, found it "
                f"{apart:.1f} away: choose backend eager"
            )
        self._verified, self.apart = True, apart

    def close(self) -> None:
        """Free the device."""
        self._loops, self._picture, self._look = {}, (), None
        self._denoiser = self._evaluate = self._view = _closed
        super().close()

    def _networks(self) -> tuple[Callable[..., torch.Tensor], Callable[..., tuple[torch.Tensor, ...]]]:
        """Return the functions that evaluate the network, and that decode latents into a picture."""
        if self._rewritten:
            self._denoiser.times = rework(self._pipe.unet)
            rework(self._decoder_network)
            rework_encoder(self._pipe.image_encoder)
        if self.device.type == "cuda":
            for part in (self._pipe.unet, self._decoder_network):
                part.to(memory_format=torch.channels_last)
        return self._compiled(self._denoiser), self._compiled(self._decode_and_encode)

    def _capturable(self, stream: int) -> bool:
        """Whether the work of the graphs may be captured."""
        return True

    @property
    def _decoder_network(self) -> Any:
        return self._pipe.vae if hasattr(self._pipe, "vae") else self._pipe.movq

    def _schedule(self) -> None:
        super()._schedule()
        if self._denoiser is None:  # not yet: the reference runs first
            return
        table = step_table(self._pipe.scheduler, self.settings.steps)
        self._denoiser.at(table.timesteps)
        self._mix = [t.to(self.device, torch.float32) for t in (table.inputs, table.final)]
        if table.draws and not self._model.draws_alike:
            raise ModelError(
                f"{self._scheduler_name}: expected a scheduler whose steps are linear and draw no noise with this model (ddim, pndm, "
                "dpm++2m, unipc, euler), this one draws: choose another [generator] scheduler, or backend eager"
            )
        self._draws = table.draws
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self._loops = {count: _Loop(self, count) for count in {1, self.settings.batch}}
        self._look = Graph(self._run_look, self.device, self._pool, self._capturable)

    def _paint(self, embeddings: NDArray[np.float32], seeds: list[int]) -> Iterator[Painted]:
        if not self._verified:
            self.warm_up()
        waiting: list[tuple[int, _Fetched]] = []  # at most one: returned once the device has its next work
        for part in self._groups(len(seeds)):
            with self._computing():
                latents = self._denoise(torch.from_numpy(embeddings[part]), seeds[part])
            for i in range(len(latents)):
                for index, fetched in waiting:
                    yield Painted(index, *fetched.get())
                with self._computing():
                    waiting = [(part.start + i, self._start_look(latents[i : i + 1]))]
                if self.device.type == "cpu":  # nothing runs beside the host
                    yield Painted(waiting[0][0], *waiting[0][1].get())
                    waiting = []
        for index, fetched in waiting:
            yield Painted(index, *fetched.get())

    def _denoise(self, embeddings: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        condition, noise, generators = self._conditions(embeddings, seeds)
        count = len(seeds)
        loop = self._loops[1 if count == 1 else self.settings.batch]
        drawn = [noise, *(torch.cat([torch.randn((1, *noise.shape[1:]), generator=g) for g in generators]) for _ in range(self._draws))]
        return loop.run(condition, torch.stack(drawn))[:count]

    def _finish(self, latents: torch.Tensor) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        return self._start_look(latents).get()

    def _start_look(self, latents: torch.Tensor) -> _Fetched:
        self._one.copy_(latents)
        self._look()
        return _Fetched(self._picture, self.device)

    def _run_look(self) -> None:
        """Compute the pixels and the embedding of one picture's latents."""
        found = self._view(self._one)
        if self._picture:
            for static, fresh in zip(self._picture, found, strict=True):
                static.copy_(fresh)
        else:
            self._picture = tuple(part.clone() for part in found)

    def _decode_and_encode(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return pixels uint8 (H, W, 3), embedding float32 (e,), and the number of the picture's values that are not finite."""
        return self._encode_image(self._decode(latents.to(self.dtype))[0])

    def _encode_image(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As :meth:`_decode_and_encode`, from a decoded image (3, H, W)."""
        image = image.float()
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
        if not self._compiler:
            return function
        options: dict[str, Any] = {}
        if self._compiler == "inductor" and self.settings.repeatable and hasattr(torch._inductor.config, "deterministic"):
            options["deterministic"] = True
        # tests require whole graphs; with other library versions, a broken graph costs some speed here, and no picture
        whole = self._compiler == "eager"
        return torch.compile(function, backend=self._compiler, fullgraph=whole, dynamic=False, options=options or None)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with self._out_of_memory(), torch.no_grad():  # not inference mode: compiled code may later be called without it
            yield


def _closed(*_: Any) -> Any:
    raise ValueError("generator: expected an open one, this one has been closed")


class _Loop:
    """The denoising loop of a fixed number of pictures: its static buffers and its graph."""

    def __init__(self, owner: CompiledGenerator, count: int) -> None:
        shape = (count, *owner.folder.latent_shape)
        final = owner._mix[1]
        self._owner = owner
        self._told = torch.zeros((count, owner._model.condition_size), dtype=owner.dtype, device=owner.device)
        self._first = 1 + owner._draws
        self._history = torch.zeros((len(final), *shape), device=owner.device)  # noise, then the network's outputs
        self._latents = torch.zeros(shape, device=owner.device)
        self._given = [torch.zeros(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for t in (self._told, self._history[: self._first])]
        self._read = torch.cuda.Event() if owner.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._graph = Graph(self._evaluate_all, owner.device, owner._pool, owner._capturable)

    def run(self, condition: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """From conditions (n, k) and noise (1 + d, n, c, h, w) to latents (count, c, h, w), valid until the next run.

        Only the first n are valid.
        """
        if self._read is not None:
            self._read.synchronize()  # until the device has read the previous inputs
        told, drawn = self._given
        told[: len(condition)].copy_(condition)  # further rows keep old values, which are not used
        drawn[:, : noise.shape[1]].copy_(noise)
        self._told.copy_(told, non_blocking=True)
        self._history[: self._first].copy_(drawn, non_blocking=True)
        if self._read is not None:
            self._read.record(torch.cuda.current_stream(self._told.device))
        self._graph()
        return self._latents

    def _evaluate_all(self) -> None:
        owner = self._owner
        inputs, final = owner._mix
        flat = self._history.flatten(1)
        embedding = owner._denoiser.embed(self._told)
        for i, row in enumerate(inputs):
            known = self._first + i
            latents = (row[:known] @ flat[:known]).view_as(self._latents)
            self._history[known].copy_(owner._evaluate(latents, owner._denoiser.time_embeddings[i : i + 1], embedding))
        self._latents.copy_((final @ flat).view_as(self._latents))


class _Fetched:
    """A picture on its way to the host."""

    def __init__(self, parts: tuple[torch.Tensor, ...], device: torch.device) -> None:
        self._parts = [torch.empty(part.shape, dtype=part.dtype, pin_memory=part.is_cuda) for part in parts]
        for own, part in zip(self._parts, parts, strict=True):
            own.copy_(part, non_blocking=True)
        self._event = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(device))

    def get(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Wait for the picture; return pixels (H, W, 3) and embedding (e,), or raise ModelError if it must not be shown."""
        if self._event is not None:
            self._event.synchronize()
        pixels, embedding, broken = (part.numpy() for part in self._parts)
        problem = pixel_problem(int(broken), pixels) or ("" if np.isfinite(embedding).all() else "embedding: expected finite numbers")
        if problem:
            raise ModelError(problem)
        return np.array(pixels), np.array(embedding)

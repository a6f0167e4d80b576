"""Choice of the backend: the requested one, or the fastest that works; and the fallback when it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.errors import ConfigError, ModelError
from rtevo.generate.base import Generator, GeneratorSettings, Painted, check_request
from rtevo.generate.compiled import CompiledGenerator
from rtevo.generate.eager import EagerGenerator
from rtevo.generate.folder import ModelFolder
from rtevo.generate.loading import pick_device
from rtevo.generate.tensorrt import TensorRTGenerator, check_faster

__all__ = ["FallbackGenerator", "make"]

log = logging.getLogger(__name__)

Tell = Callable[[str], None] | None
KINDS: dict[str, Callable[..., EagerGenerator]] = {
    "tensorrt": TensorRTGenerator,
    "compiled": CompiledGenerator,
    "eager": EagerGenerator,
}
"""Backends, the fastest first."""


def make(folder: ModelFolder, settings: GeneratorSettings, on_progress: Tell = None) -> Generator:
    """Return the generator for `settings`.

    With backend ``auto``: on a GPU, engines that were measured to be faster than the compiled backend on this machine, else the compiled
    backend, else the reference; the first picture always equals the reference's. On a CPU, the reference. The log says which backend was
    chosen, and why not a faster one.

    Raises
    ------
    ModelError
        The requested model, device or backend cannot be used.
    """
    if settings.backend != "auto":
        found = KINDS[settings.backend](folder, settings, on_progress)
    else:
        found = _fastest(folder, settings, on_progress)
    return FallbackGenerator(found, on_progress) if settings.fallback else found


def _fastest(folder: ModelFolder, settings: GeneratorSettings, on_progress: Tell) -> EagerGenerator:
    if pick_device(settings.device).type == "cpu":
        log.info("generator: backend auto takes eager: there is no GPU")
        return EagerGenerator(folder, settings, on_progress)
    for name in ("tensorrt", "compiled"):
        generator = None
        try:
            if name == "tensorrt":
                check_faster(folder, settings)
            generator = KINDS[name](folder, settings, on_progress)
            generator.warm_up()
        except (ModelError, RuntimeError) as problem:
            log.warning("generator: backend auto cannot take %s: %s", name, problem)
            if generator is not None:
                generator.close()
        else:
            log.info("generator: backend auto takes %s, whose picture is the reference's", name)
            return generator
    log.warning("generator: backend auto falls back to eager, which is slower")
    return EagerGenerator(folder, settings, on_progress)


class FallbackGenerator:
    """Continues with the reference in single precision if another backend fails while painting; the session file permits this.

    Black or non-finite pictures come from an overflow of half precision, so the reference in half would fail again. A failure of the
    reference itself is raised.

    Parameters
    ----------
    generator : EagerGenerator
        The generator that paints until it fails.
    on_progress : callable, optional
    """

    def __init__(self, generator: EagerGenerator, on_progress: Tell = None) -> None:
        self._generator, self._tell = generator, on_progress
        self.embedding_size, self.image_size = generator.embedding_size, generator.image_size

    @property
    def description(self) -> str:
        """Description of the generator that paints now."""
        return self._generator.description

    def paint(self, embeddings: ArrayLike, seeds: ArrayLike) -> Iterator[Painted]:
        """Paint images one by one; see :meth:`rtevo.generate.Generator.paint`."""
        return self._paint(*check_request(embeddings, seeds, self.embedding_size))

    def warm_up(self) -> None:
        """Paint one image and discard it; see :meth:`rtevo.generate.Generator.warm_up`."""
        try:
            self._generator.warm_up()
        except (ModelError, RuntimeError) as problem:
            self._fall_back(problem)
            self._generator.warm_up()

    def reschedule(self, scheduler: str, steps: int) -> None:
        """Change scheduler and steps; see :meth:`rtevo.generate.Generator.reschedule`."""
        self._generator.reschedule(scheduler, steps)

    def close(self) -> None:
        """Free the device."""
        self._generator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _paint(self, embeddings: NDArray[np.float32], seeds: list[int]) -> Iterator[Painted]:
        done = 0
        try:
            for painted in self._generator.paint(embeddings, seeds):
                yield painted
                done += 1
        except (ModelError, RuntimeError) as problem:
            self._fall_back(problem)
            for painted in self._generator.paint(embeddings[done:], seeds[done:]):
                yield replace(painted, index=painted.index + done)

    def _fall_back(self, problem: Exception) -> None:
        failed = self._generator
        if isinstance(problem, ConfigError) or (failed.backend == "eager" and str(failed.dtype) == "torch.float32"):
            raise problem
        log.warning("generator: %s failed, continuing with eager in single precision, which is slower: %s", failed.backend, problem)
        failed.close()
        settings = replace(failed.settings, backend="eager", precision="float32")
        self._generator = EagerGenerator(failed.folder, settings, self._tell)

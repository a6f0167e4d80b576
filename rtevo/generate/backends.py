"""Which backend paints: the one that was asked for, or the fastest that works."""

from __future__ import annotations

import logging
from collections.abc import Callable

from rtevo.errors import ModelError
from rtevo.generate.base import Generator, GeneratorSettings
from rtevo.generate.compiled import CompiledGenerator
from rtevo.generate.eager import EagerGenerator
from rtevo.generate.folder import ModelFolder
from rtevo.generate.loading import pick_device

__all__ = ["make"]

log = logging.getLogger(__name__)


def make(folder: ModelFolder, settings: GeneratorSettings, on_progress: Callable[[str], None] | None = None) -> Generator:
    """Make the generator that `settings` ask for.

    With backend ``auto``: the compiled one on a GPU, after its first picture has been compared with the reference's, and the
    reference where that fails, which is logged; the reference on a CPU.

    Raises
    ------
    ModelError
        The model, the device or the backend that was asked for cannot be used.
    """
    if settings.backend == "compiled":
        return CompiledGenerator(folder, settings, on_progress)
    if settings.backend == "auto" and pick_device(settings.device).type == "cuda":
        generator = None
        try:
            generator = CompiledGenerator(folder, settings, on_progress)
            generator.warm_up()
            return generator
        except (ModelError, RuntimeError) as problem:
            log.warning("generator: backend auto falls back to eager, which is slower: %s", problem)
            if generator is not None:
                generator.close()
    return EagerGenerator(folder, settings, on_progress)

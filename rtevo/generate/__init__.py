"""From image embeddings to images: the only user of torch.

Importing this package imports no torch; :func:`load` does. ::

    with load(GeneratorSettings(model_path)) as generator:
        for painted in generator.paint(embeddings, seeds):
            ...

A model is a diffusers folder of a Stable unCLIP pipeline; without one, the built-in small one paints emoji of 64 px.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rtevo.errors import ConfigError
from rtevo.generate.base import BACKENDS, DASK, SCHEDULERS, Generator, GeneratorSettings, Painted
from rtevo.generate.folder import ModelFolder, describe
from rtevo.generate.tiny import TINY_LATENT_SPACE, TINY_UNCLIP

__all__ = [
    "BACKENDS",
    "SCHEDULERS",
    "TINY_LATENT_SPACE",
    "TINY_UNCLIP",
    "Generator",
    "GeneratorSettings",
    "ModelFolder",
    "Painted",
    "describe",
    "load",
    "probe",
]


def probe(model_path: Path | None = None, px: int = 0) -> tuple[int, tuple[int, int]]:
    """Return the sizes of a model's embeddings and images, in milliseconds, without loading it.

    Parameters
    ----------
    model_path : Path, optional
        Model folder. None: the built-in one.
    px : int
        Longer side of an image, pixels; 0: the model's own.

    Returns
    -------
    embedding_size : int
    image_size : tuple of int
        Height and width, pixels.

    Raises
    ------
    ModelError
        The folder is missing, incomplete, damaged or of another kind.
    ConfigError
        The model cannot make that size.
    """
    found = describe(model_path or TINY_UNCLIP).at(px)
    return found.embedding_size, found.image_size


def load(settings: GeneratorSettings, on_progress: Callable[[str], None] | None = None) -> Generator:
    """Load a model, and return the generator that paints with it.

    Nothing is ever downloaded. On a CPU torch's number of threads is set for the whole process.

    Parameters
    ----------
    settings : GeneratorSettings
    on_progress : callable, optional
        Called with one line for each step of the work, which takes seconds to minutes.

    Returns
    -------
    Generator

    Raises
    ------
    ModelError
        The folder is missing, incomplete, damaged or of another kind; the device is missing or too small.
    ConfigError
        The noise level is beyond the model's schedule.
    """
    folder = describe(settings.model_path or TINY_UNCLIP)
    if settings.noise_level >= folder.noise_levels:
        raise ConfigError(f"[generator] noise_level: expected below {folder.noise_levels} for this model, got {settings.noise_level}")
    if settings.device.startswith(DASK):
        from rtevo.generate.remote import RemoteGenerator

        return RemoteGenerator(folder, settings, on_progress)
    from rtevo.generate.backends import make

    return make(folder, settings, on_progress)

"""The interface of a generator: its settings, its protocol and its pictures. Independent of torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.errors import ConfigError

__all__ = ["BACKENDS", "DASK", "PRECISIONS", "SCHEDULERS", "Generator", "GeneratorSettings", "Painted", "check_request"]

BACKENDS = ("auto", "eager", "compiled", "tensorrt")
"""``auto``: the fastest on this machine that paints the same pictures as the reference."""

SCHEDULERS = ("model", "ddim", "pndm", "dpm++2m", "unipc", "euler", "lcm")
"""``model``: the scheduler of the model folder; ``euler`` (with trailing steps) and ``lcm``: for models distilled to few steps."""

DASK = "dask://"
"""Prefix of a device that is a scheduler of Dask workers: ``dask://HOST:PORT``."""

PRECISIONS = ("auto", "float16", "float32")
"""``auto``: half on a GPU, single on a CPU."""


@dataclass(frozen=True)
class GeneratorSettings:
    """How embeddings become images.

    Parameters
    ----------
    model_path : Path, optional
        diffusers folder of a Stable unCLIP pipeline, of Kandinsky 2.2's decoder, or of Stable Diffusion with an IP-Adapter. None: the
        built-in one.
    steps : int
        Denoising steps an image, >= 1.
    guidance_scale : float
        Classifier-free guidance, >= 1; 1 turns it off and halves the work.
    noise_level : int
        Noise added to the embedding, in steps of the pipeline's image noising schedule, >= 0.
    threads : int
        CPU threads of torch, >= 1. One is fastest if other processes are busy.
    device : str
        ``auto`` (CUDA if there is a device, else CPU), ``cpu``, ``cuda``, ``cuda:N``, or ``dask://HOST:PORT`` for Dask workers.
    batch : int
        Images of a request that are denoised together, after the first, which is denoised alone, >= 1.
    scheduler : str
        One of `SCHEDULERS`.
    backend : str
        One of `BACKENDS`.
    precision : str
        One of `PRECISIONS`.
    px : int
        Longer side of an image, pixels; 0: the model's own.
    tiny_vae : Path, optional
        Folder of an ``AutoencoderTiny`` for the model's latents, which decodes instead of the model's own.
    engines : Path, optional
        Folder of TensorRT engines. None: ``engines`` in the model's folder.
    fallback : bool
        Whether the reference in single precision replaces a backend that fails in a session.
    repeatable : bool
        Whether the compiler must choose kernels without timing them, so that every process paints the same bits.
    fingerprint : str
        Fingerprint of the model's files (:func:`rtevo.generate.hashes.fingerprint`), if known already; empty: computed when needed.
    workers_model : str
        Model folder on the workers' computers; empty: the same path as here.
    workers_keys : Path, optional
        Folder with ``ca.pem``, ``cert.pem`` and ``key.pem``: TLS to scheduler and workers.
    answer_s : float
        After this time without a picture from one worker, another is asked, s, > 0.

    Raises
    ------
    ConfigError
        With all mistakes.
    """

    model_path: Path | None = None
    steps: int = 10
    guidance_scale: float = 3.0
    noise_level: int = 0
    threads: int = 1
    device: str = "auto"
    batch: int = 1
    scheduler: str = "model"
    backend: str = "auto"
    precision: str = "auto"
    px: int = 0
    tiny_vae: Path | None = None
    engines: Path | None = None
    fallback: bool = False
    repeatable: bool = False
    fingerprint: str = ""
    workers_model: str = ""
    workers_keys: Path | None = None
    answer_s: float = 4.0

    def __post_init__(self) -> None:
        mistakes = [
            f"[generator] {name}: expected a whole number >= {least}, got {value!r}"
            for name, least, value in (
                ("steps", 1, self.steps),
                ("noise_level", 0, self.noise_level),
                ("threads", 1, self.threads),
                ("batch", 1, self.batch),
                ("px", 0, self.px),
            )
            if not isinstance(value, int) or isinstance(value, bool) or value < least
        ]
        if not np.isfinite(self.guidance_scale) or self.guidance_scale < 1:
            mistakes.append(f"[generator] guidance_scale: expected a number >= 1, got {self.guidance_scale!r}")
        if not np.isfinite(self.answer_s) or self.answer_s <= 0:
            mistakes.append(f"[generator] answer_s: expected a number > 0, got {self.answer_s!r}")
        kind, _, number = self.device.partition(":")
        there = kind == "cuda" or (self.device.startswith(DASK) and self.device.count(":") == 2)
        if self.device not in ("auto", "cpu", "cuda") and not (there and number.rpartition(":")[2].isdecimal()):
            mistakes.append(f"[generator] device: expected auto, cpu, cuda, cuda:N or dask://HOST:PORT, got {self.device!r}")
        for name, known, chosen in (
            ("scheduler", SCHEDULERS, self.scheduler),
            ("backend", BACKENDS, self.backend),
            ("precision", PRECISIONS, self.precision),
        ):
            if chosen not in known:
                mistakes.append(f"[generator] {name}: expected one of {', '.join(known)}, got {chosen!r}")
        if mistakes:
            raise ConfigError(mistakes)


@dataclass(frozen=True, eq=False)
class Painted:
    """One finished image.

    Parameters
    ----------
    index : int
        Its row in the request.
    pixels : ndarray, uint8 (H, W, 3)
        RGB, row 0 at the top.
    embedding : ndarray, float32 (e,)
        Re-encoding of `pixels`, in the space of the requested embeddings.
    """

    index: int
    pixels: NDArray[np.uint8]
    embedding: NDArray[np.float32]


class Generator(Protocol):
    """Paints embeddings. A context manager that frees the device at its end.

    Attributes
    ----------
    embedding_size : int
        Numbers in an embedding, e.
    image_size : tuple of int
        Height and width of an image, pixels.
    description : str
        Backend, device, precision and scheduler, for the log and the session's record.
    """

    embedding_size: int
    image_size: tuple[int, int]

    @property
    def description(self) -> str: ...

    def paint(self, embeddings: ArrayLike, seeds: ArrayLike) -> Iterator[Painted]:
        """Paint images one by one, in order, each as soon as it is finished.

        The same embedding and seed give the same image, whatever the rest of the request: bit for bit if images are denoised one at a
        time, within rounding if they share a batch. The first is denoised alone, so that it is ready soonest.

        Parameters
        ----------
        embeddings : array-like, float32 (n, e)
            Image embeddings, as from the pipeline's image encoder.
        seeds : array-like, uint64 (n,)
            Seeds of each image's noise.

        Yields
        ------
        Painted

        Raises
        ------
        ValueError
            Shapes do not fit or a number is not finite; raised by the call itself, before the first image.
        ModelError
            An image is black or not finite, or the device ran out of memory.
        """
        ...

    def reschedule(self, scheduler: str, steps: int) -> None:
        """Paint with another scheduler or number of steps from now on.

        Raises
        ------
        ModelError
            The backend cannot run this scheduler.
        """
        ...

    def warm_up(self) -> None:
        """Paint one image and discard it, so that the first requested image takes no longer than the others.

        Raises
        ------
        ModelError
            The image is black or not finite, or the device ran out of memory.
        """
        ...

    def close(self) -> None:
        """Free the device; the generator cannot paint afterwards."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def check_request(embeddings: ArrayLike, seeds: ArrayLike, size: int) -> tuple[NDArray[np.float32], list[int]]:
    """Return a request as a finite float32 (n, `size`) array and n seeds, or raise ValueError."""
    wanted = np.ascontiguousarray(embeddings, np.float32)
    if wanted.ndim != 2 or wanted.shape[1] != size:
        raise ValueError(f"embeddings: expected shape (n, {size}) for this model, got {wanted.shape}")
    if not np.isfinite(wanted).all():
        raise ValueError(f"embeddings: expected finite numbers, got {np.flatnonzero(~np.isfinite(wanted).all(1)).tolist()} with others")
    numbers = np.asarray(seeds)
    if numbers.shape != (len(wanted),) or numbers.dtype.kind not in "iu" or (numbers.size and int(numbers.min()) < 0):
        raise ValueError(f"seeds: expected {len(wanted)} whole numbers >= 0, got {seeds!r}")
    return wanted, [int(n) for n in numbers]

"""Pictures painted by Dask workers, on another computer or a cluster.

If a worker dies or does not answer in time, another worker paints its pictures. Only workers that have loaded the model are asked for
pictures; a worker that joins later, or again, loads it while the session runs. Pictures come in the order of the requests.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.errors import ConfigError, DataError, ModelError
from rtevo.generate import worker
from rtevo.generate.base import DASK, GeneratorSettings, Painted, check_request
from rtevo.generate.folder import ModelFolder

__all__ = ["RemoteGenerator"]

log = logging.getLogger(__name__)

ANSWER_S = 10.0
"""Longest wait for a scheduler's answer, s."""

LOAD_S = 900.0
"""Longest time for workers to load, verify and compile a model, s."""

TRIES = 3
"""Number of workers that are asked for a picture before giving up."""

SENT = ("steps", "guidance_scale", "noise_level", "threads", "scheduler", "backend", "precision", "px", "fingerprint")
"""Settings that a worker uses; its device is its own."""

KEY_FILES = {"tls_ca_file": "ca.pem", "tls_client_cert": "cert.pem", "tls_client_key": "key.pem"}


class RemoteGenerator:
    """Paints with the workers of a Dask scheduler; see :class:`rtevo.generate.Generator`.

    Parameters
    ----------
    folder : ModelFolder
        The model here; a worker has its own copy, whose hash must be the same.
    settings : GeneratorSettings
        With a `device` of the form ``dask://HOST:PORT``.
    on_progress : callable, optional

    Raises
    ------
    ModelError
        Dask is not installed, no scheduler answers, or it has no workers.
    ConfigError
        A key file is missing.
    """

    backend = "dask"

    def __init__(self, folder: ModelFolder, settings: GeneratorSettings, on_progress: Callable[[str], None] | None = None) -> None:
        self.settings, self.folder = settings, folder.at(settings.px)
        self.embedding_size, self.image_size = self.folder.embedding_size, self.folder.image_size
        self._tell = on_progress or (lambda _: None)
        self._client = _connect(settings)
        self._ready: dict[str, str] = {}  # generator's description of each worker that has loaded the model, by address
        self._loading: dict[str, Any] = {}
        self._refused: dict[str, str] = {}
        self._own: Any = None  # paints here if no worker can, and the settings permit it

    @property
    def description(self) -> str:
        """Scheduler, number of workers, and the first worker's generator."""
        first = next(iter(self._ready.values()), "not loaded yet")
        return f"dask, {len(self._ready)} workers of {self.settings.device.removeprefix(DASK)}: {first}"

    def warm_up(self) -> None:
        """Have every worker load the model; see :meth:`rtevo.generate.Generator.warm_up`.

        Raises
        ------
        ModelError
            No worker can paint, and the settings do not permit painting here.
        """
        self._look()
        self._tell(f"{len(self._loading)} workers load the model")
        for future in list(self._loading.values()):
            self._wait(future, LOAD_S)
        self._look()
        if not self._ready:
            why = "; ".join(f"{address}: {problem}" for address, problem in self._refused.items()) or "found none: start some"
            problem = f"[generator] devices {self.settings.device}: expected workers that can paint: {why}"
            if not self.settings.fallback:
                raise ModelError(problem)
            log.warning("generator: %s; pictures are painted here, which is slower", problem)
            self._here()

    def paint(self, embeddings: ArrayLike, seeds: ArrayLike) -> Iterator[Painted]:
        """Paint images; see :meth:`rtevo.generate.Generator.paint`."""
        return self._paint(*check_request(embeddings, seeds, self.embedding_size))

    def reschedule(self, scheduler: str, steps: int) -> None:
        """Change scheduler and steps; see :meth:`rtevo.generate.Generator.reschedule`."""
        self.settings = replace(self.settings, scheduler=scheduler, steps=steps)

    def close(self) -> None:
        """Release the workers; they keep the model for the next session."""
        self._client.close(timeout=2)
        if self._own is not None:
            self._own.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _look(self) -> None:
        """Update the list of workers: new ones load the model, and those that have loaded it are ready."""
        there = set(self._client.scheduler_info(n_workers=-1)["workers"])
        for known in (self._ready, self._loading, self._refused):
            for address in known.keys() - there:
                del known[address]
        for address in sorted(there - self._ready.keys() - self._loading.keys() - self._refused.keys()):
            self._loading[address] = self._client.submit(
                worker.prepare, self._request(), pure=False, workers=[address], allow_other_workers=False
            )
        for address in [address for address, future in self._loading.items() if future.done()]:
            answer = self._wait(self._loading.pop(address), ANSWER_S)
            if isinstance(answer, str) or "error" in answer[0]:
                self._refused[address] = answer if isinstance(answer, str) else str(answer[0]["error"])
                log.warning("generator: worker %s cannot paint: %s", address, self._refused[address])
            else:
                self._ready[address] = str(answer[0].get("description", ""))

    def _request(self, seed: int = 0, *embedding: NDArray[np.float32]) -> bytes:
        settings = {name: getattr(self.settings, name) for name in SENT}
        settings |= {"repeatable": True, "tiny_vae": str(self.settings.tiny_vae or "")}  # every worker chooses the same kernels
        return worker.pack({"settings": settings, "model": self._model(), "seed": seed}, *embedding)

    def _model(self) -> str:
        own = "" if self.settings.model_path is None else str(Path(self.settings.model_path).absolute())
        return self.settings.workers_model or own

    def _ask(self, request: bytes, but: str | None = None) -> Any:
        """Ask a ready worker for a picture, preferably not `but`; return None if no worker is ready."""
        self._look()
        ready = [address for address in self._ready if address != but] or list(self._ready)
        return self._client.submit(worker.paint, request, pure=False, workers=ready, allow_other_workers=False) if ready else None

    def _paint(self, embeddings: NDArray[np.float32], seeds: list[int]) -> Iterator[Painted]:
        if not self._ready and self._own is None:
            self.warm_up()
        requests = [self._request(seed, embedding) for embedding, seed in zip(embeddings, seeds, strict=True)]
        futures = [self._ask(request) for request in requests]
        for index, request in enumerate(requests):
            pixels, embedding = self._answer(futures[index], request, embeddings[index], seeds[index])
            yield Painted(index, pixels, embedding)

    def _answer(
        self, future: Any, request: bytes, embedding: NDArray[np.float32], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Wait for a picture; if its worker fails, ask others, and finally paint it here, if the settings permit it."""
        problem = "no worker is ready"
        for _ in range(TRIES):
            if future is None:
                break
            answer = self._wait(future, self.settings.answer_s)
            try:
                if isinstance(answer, str):
                    raise DataError(answer)
                return self._read(*answer)
            except DataError as why:
                problem = str(why)
            log.warning("generator: another worker is asked for a picture: %s", problem)
            at = self._at(future)
            future.cancel()
            future = self._ask(request, at)
        if future is not None:
            future.cancel()
        if not self.settings.fallback:
            raise ModelError(f"[generator] devices {self.settings.device}: no worker painted a picture: {problem}")
        log.warning("generator: no worker paints: this picture is painted here, which is slower")
        (painted,) = self._here().paint(embedding[None], [seed])
        return painted.pixels, painted.embedding

    def _here(self) -> Any:
        """The generator on this computer, loaded at its first use."""
        if self._own is None:
            from rtevo.generate.eager import EagerGenerator

            here = replace(self.settings, device="auto", backend="eager", precision="float32")
            self._own = EagerGenerator(self.folder, here, self._tell)
        return self._own

    def _wait(self, future: Any, timeout_s: float) -> tuple[dict[str, Any], memoryview] | str:
        """Return a worker's answer, or why there is none."""
        try:
            return worker.unpack(future.result(timeout=timeout_s))
        except TimeoutError:
            return f"no answer within {timeout_s:g} s"
        except Exception as problem:  # of Dask, for example if its worker was killed
            return f"{type(problem).__name__}: {problem}"

    def _read(self, header: dict[str, Any], rest: memoryview) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return pixels and embedding of an answer; raise DataError if they cannot be shown."""
        if "error" in header:
            raise DataError(str(header["error"]))
        shape = (*self.image_size, 3)
        size = int(np.prod(shape))
        if header.get("shape") != list(shape) or len(rest) != size + 4 * self.embedding_size:
            raise DataError(f"expected a picture of {shape}, got {header.get('shape')} in {len(rest)} bytes")
        embedding = np.frombuffer(rest[size:], np.float32).copy()
        if not np.isfinite(embedding).all():
            raise DataError("expected an embedding of finite numbers, got others")
        return np.frombuffer(rest[:size], np.uint8).reshape(shape).copy(), embedding

    def _at(self, future: Any) -> str | None:
        """Return the worker that has a task."""
        with contextlib.suppress(Exception):  # of Dask: without its answer the worker is unknown
            return next((address for address, keys in self._client.processing().items() if future.key in keys), None)
        return None


def _connect(settings: GeneratorSettings) -> Any:
    """Return a client of the scheduler that the settings name."""
    try:
        import distributed
    except ImportError:
        raise ModelError(f"[generator] devices {settings.device}: expected Dask, found none: pip install 'rtevo[dask]'") from None
    logging.getLogger("distributed").setLevel(logging.ERROR)
    address, security = settings.device.removeprefix(DASK), None
    if settings.workers_keys is not None:
        files = {option: settings.workers_keys / name for option, name in KEY_FILES.items()}
        missing = [file.name for file in files.values() if not file.is_file()]
        if missing:
            raise ConfigError(
                f"[generator] workers_keys {settings.workers_keys}: expected {', '.join(KEY_FILES.values())}; missing {missing}"
            )
        security = distributed.Security(**{k: str(f) for k, f in files.items()}, require_encryption=True)
    try:
        return distributed.Client(
            f"{'tls' if security else 'tcp'}://{address}", security=security, timeout=ANSWER_S, set_as_default=False, name="rtevo"
        )
    except (OSError, TimeoutError) as problem:
        raise ModelError(f"[generator] devices {settings.device}: expected a Dask scheduler, but none answers: {problem}") from None

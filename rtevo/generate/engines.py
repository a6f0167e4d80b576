"""Folders of TensorRT engines: an engine's key, its publication, the choice of an engine, and measured times.

An engine fits one model, one version of TensorRT, fixed shapes, and one GPU; an engine of TensorRT for RTX fits every GPU of some compute
capabilities. All of these are its key. A folder of engines holds one folder for each key, named after it, with ``unet.plan``, ``vae.plan``
and ``engine.json`` (the key, the plans' SHA-256, and the verification's results). It is built elsewhere and renamed into its place after
the verification, so that half an engine is never loaded. Files of one machine are added later: ``timed.json`` (:func:`record_timing`) and
TensorRT for RTX's compiled kernels (:func:`cache_file`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rtevo.errors import DataError, ModelError
from rtevo.outside import read_json

__all__ = ["NETWORKS", "EngineKey", "cache_file", "default_folder", "find", "publish", "read_plans", "record_timing", "timing"]

NETWORKS = ("unet", "vae")
MANIFEST = "engine.json"
TIMED = "timed.json"


@dataclass(frozen=True)
class EngineKey:
    """The key of an engine; an engine with any difference is never loaded.

    Parameters
    ----------
    model : str
        SHA-256 of the model's files.
    gpu : str
        The driver's name of the GPU; empty: every GPU of these capabilities (TensorRT for RTX).
    capabilities : tuple of str
        Compute capabilities on which it runs, ``("9.0",)``.
    tensorrt : str
        Module and version, ``"tensorrt 11.4.0.106"``.
    rows : int
        Samples that the network evaluates at once: twice the images with guidance.
    height, width : int
        Height and width of an image, pixels.
    precision : str
        ``float16`` or ``float32``.
    """

    model: str
    gpu: str
    capabilities: tuple[str, ...]
    tensorrt: str
    rows: int
    height: int
    width: int
    precision: str

    @property
    def name(self) -> str:
        """Name of its folder."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-") or "rtx"
        where = f"{gpu}-sm{'-'.join(c.replace('.', '') for c in self.capabilities)}-{self.tensorrt.replace(' ', '-')}"
        return f"{self.model[:12]}-{where}-{self.rows}x{self.width}x{self.height}-{self.precision}"

    def difference(self, other: Mapping[str, Any]) -> str:
        """Return the differences of another key from this one, which is a machine's; empty if its engine runs there."""
        own = asdict(self)
        found = {k: other.get(k) for k in own}
        if found["gpu"] == "":
            found["gpu"] = own["gpu"]
        if isinstance(found["capabilities"], list) and set(own["capabilities"]) <= set(found["capabilities"]):
            found["capabilities"] = own["capabilities"]
        return ", ".join(f"{k} {_short(found[k])} instead of {_short(v)}" for k, v in own.items() if found[k] != v)


def default_folder(model: Path) -> Path:
    """Return the default folder of a model's engines."""
    return model / "engines"


def find(folder: Path, key: EngineKey) -> Path:
    """Find the engines of a key.

        Parameters
        ----------
        folder : Path
            Folder of engines.
        key : EngineKey
            The machine's key: its GPU and compute capability.

        Returns
        -------
        Path
            Folder of the engines.

    Raises
        ------
        ModelError
            There are none for this key (the message lists how the others differ), or one was not finished.
    """
    others = []
    for file in sorted(folder.glob(f"[!.]*/{MANIFEST}")):
        different = key.difference(_manifest(file)["key"])
        if not different:
            return file.parent
        others.append(f"{file.parent.name}: {different}")
    there = f"the engines there differ ({'; '.join(others)})" if others else "there are none"
    raise ModelError(
        f"{folder}: expected a TensorRT engine {key.name}, but {there}: build it (python build/engine.py MODEL_DIR), "
        "or choose backend compiled"
    )


def read_plans(own: Path) -> dict[str, bytes]:
    """Read the plans of a folder from :func:`find`, by the names of `NETWORKS`.

    Raises
    ------
    ModelError
        The plans differ from the published ones.
    """
    manifest, plans = _manifest(own / MANIFEST), {}
    for name in NETWORKS:
        file = own / f"{name}.plan"
        data = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(data).hexdigest() != manifest["sha256"].get(name):
            raise ModelError(f"{file}: expected the file that was verified, found {'another' if data else 'none'}: build it again")
        plans[name] = data
    return plans


def publish(folder: Path, key: EngineKey, plans: Mapping[str, Path], verified: Mapping[str, Any]) -> Path:
    """Move verified plans to their place, all of them at once.

    Parameters
    ----------
    folder : Path
        Folder of engines.
    key : EngineKey
    plans : mapping of str to Path
        Files, on the same disk as `folder`; they are moved.
    verified : mapping
        Results of the verification, for the record.

    Returns
    -------
    Path
        Their folder.
    """
    partial = folder / f".{key.name}.{os.getpid()}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    hashes = {}
    for name, file in plans.items():
        with file.open("rb") as stream:
            hashes[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        os.replace(file, partial / f"{name}.plan")
    (partial / MANIFEST).write_text(json.dumps({"key": asdict(key), "sha256": hashes, "verified": verified}, indent=2) + "\n")
    own = folder / key.name
    if own.exists():  # an older build of the same engine
        own.rename(folder / f".{key.name}.{os.getpid()}.old")
    partial.rename(own)
    shutil.rmtree(folder / f".{key.name}.{os.getpid()}.old", ignore_errors=True)
    return own


def record_timing(own: Path, machine: str, figures: Mapping[str, float]) -> None:
    """Record the time of an engine's pictures on a machine, and their distance from the reference."""
    write(own / TIMED, (json.dumps({**_timings(own), machine: dict(figures)}, indent=2) + "\n").encode())


def timing(own: Path, machine: str) -> dict[str, float]:
    """Return the record of :func:`record_timing` for a machine; empty if nothing was measured on it."""
    found = _timings(own).get(machine)
    return found if isinstance(found, dict) and all(isinstance(v, (int, float)) for v in found.values()) else {}


def cache_file(own: Path, network: str, gpu: str, driver: str) -> Path:
    """Return the file of the kernels that TensorRT for RTX compiled for a GPU and driver."""
    return own / f"{network}.{re.sub(r'[^A-Za-z0-9.]+', '-', f'{gpu} {driver}')}.cache"


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_bytes(data)
    os.replace(partial, path)


def _timings(own: Path) -> dict[str, Any]:
    try:
        found = read_json(own / TIMED)
    except (OSError, DataError):
        return {}
    return found if isinstance(found, dict) else {}


def _manifest(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except (OSError, DataError):
        found = None
    if isinstance(found, dict) and isinstance(found.get("key"), dict) and isinstance(found.get("sha256"), dict):
        return found
    raise ModelError(f"{file}: expected the description of an engine, found none: the engine was not finished; build it again")


def _short(value: Any) -> str:
    text = "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text

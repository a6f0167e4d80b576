"""Folders of TensorRT engines: what an engine belongs to, how it is published, and which one may be loaded.

An engine is good for one model, one GPU, one version of TensorRT, and fixed shapes: all of that is its key. A folder of engines holds
one folder for each key, named after it, with ``unet.plan``, ``vae.plan`` and ``engine.json`` (the key, the plans' SHA-256, and what the
verification found). It is built elsewhere and renamed into its place when all is verified, so that half an engine is never there to be
loaded.
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

__all__ = ["NETWORKS", "EngineKey", "default_folder", "find", "publish"]

NETWORKS = ("unet", "vae")
MANIFEST = "engine.json"


@dataclass(frozen=True)
class EngineKey:
    """What an engine belongs to; one that differs in anything is never loaded.

    Parameters
    ----------
    model : str
        SHA-256 of the model's files.
    gpu : str
        Name, as the driver has it.
    capability : str
        Compute capability, ``"9.0"``.
    tensorrt : str
        Version.
    rows : int
        Samples that the network evaluates at once: twice the images with guidance.
    height, width : int
        Of an image, pixels.
    precision : str
        ``float16`` or ``float32``.
    """

    model: str
    gpu: str
    capability: str
    tensorrt: str
    rows: int
    height: int
    width: int
    precision: str

    @property
    def name(self) -> str:
        """Of its folder."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        version = f"sm{self.capability.replace('.', '')}-trt{self.tensorrt}"
        return f"{self.model[:12]}-{gpu}-{version}-{self.rows}x{self.width}x{self.height}-{self.precision}"

    def difference(self, other: Mapping[str, Any]) -> str:
        """Say how another key differs; nothing where it does not."""
        own = asdict(self)
        return ", ".join(f"{k} {_short(other.get(k))} instead of {_short(v)}" for k, v in own.items() if other.get(k) != v)


def default_folder(model: Path) -> Path:
    """Where a model's engines are if nothing else is said."""
    return model / "engines"


def find(folder: Path, key: EngineKey) -> dict[str, bytes]:
    """Read the engines of a key.

    Parameters
    ----------
    folder : Path
        Folder of engines.
    key : EngineKey

    Returns
    -------
    dict of str to bytes
        The plans, by the names of `NETWORKS`.

    Raises
    ------
    ModelError
        There are none for this key (with how those that are there differ), or they are not whole.
    """
    own = folder / key.name
    if not own.is_dir():
        others = [f"{path.parent.name}: {key.difference(_manifest(path)['key'])}" for path in sorted(folder.glob(f"*/{MANIFEST}"))]
        there = f"those there are for something else ({'; '.join(others)})" if others else "there are none"
        raise ModelError(
            f"{folder}: expected a TensorRT engine {key.name}, but {there}: build it (python build/engine.py MODEL_DIR), "
            "or choose backend compiled"
        )
    manifest = _manifest(own / MANIFEST)
    if different := key.difference(manifest["key"]):
        raise ModelError(f"{own}: expected an engine as its folder is named, found {different}: build it anew")
    plans = {}
    for name in NETWORKS:
        file = own / f"{name}.plan"
        data = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(data).hexdigest() != manifest["sha256"].get(name):
            raise ModelError(f"{file}: expected the file that was verified, found {'another' if data else 'none'}: build it anew")
        plans[name] = data
    return plans


def publish(folder: Path, key: EngineKey, plans: Mapping[str, Path], verified: Mapping[str, Any]) -> Path:
    """Put verified plans in their place; whoever looks sees all of them or none.

    Parameters
    ----------
    folder : Path
        Folder of engines.
    key : EngineKey
    plans : mapping of str to Path
        Files, on the same disk as `folder`; they are moved.
    verified : mapping
        What the verification found, for the record.

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
    if own.exists():  # an older build of the very same
        own.rename(folder / f".{key.name}.{os.getpid()}.old")
    partial.rename(own)
    shutil.rmtree(folder / f".{key.name}.{os.getpid()}.old", ignore_errors=True)
    return own


def _manifest(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
        if isinstance(found, dict) and isinstance(found.get("key"), dict) and isinstance(found.get("sha256"), dict):
            return found
    except (OSError, DataError):
        pass
    raise ModelError(f"{file}: expected the description of an engine, found none: the engine was not finished; build it anew")


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text

"""Provenance of a session: versions, machine, hashes; the first record of its log."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rtevo import __version__
from rtevo.config import Config, absolute, dump
from rtevo.session.plan import Plan

__all__ = ["PACKAGES", "hashes", "model_hash", "open_record"]

PACKAGES = (
    "numpy", "scipy", "numba", "llvmlite", "scikit-learn", "pandas", "torch", "triton", "tensorrt-rtx-cu13", "tensorrt", "diffusers",
    "transformers", "accelerate", "peft", "safetensors", "pydicom", "pynetdicom", "pylibjpeg", "nibabel", "nitransforms", "pillow", "pyzmq",
    "msgpack", "posix_ipc", "cmaes", "cryptography", "distributed", "nicegui", "python-osc",
)  # fmt: skip
"""Packages that may affect a session's results; optional ones if installed."""


def _hash(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files with their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode() if path.is_dir() else b"")
            with file.open("rb") as handle:
                while chunk := handle.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def model_hash(config: Config) -> str:
    """Return the fingerprint of a session's image model. This reads gigabytes: a session computes it once, and keeps it in its plan.

    Raises
    ------
    ModelError
        Files differ from the published ones, or cannot be read.
    """
    from rtevo.generate import TINY_UNCLIP
    from rtevo.generate.hashes import fingerprint, hash_files

    return fingerprint(hash_files(Path(config.generator.unclip_model_path) if config.generator.unclip_model_path else TINY_UNCLIP))


def hashes(out: Path, decoder: Path, model_sha256: str, more: Sequence[str] = ()) -> dict[str, str]:
    """Return the SHA-256 of a session's files, by their names in messages; that of the model is an argument.

    `more` are further folders of the decoder's maps.
    """
    own = _hash(decoder)
    return {
        "session": _hash(out / "session.toml"),
        "decoder": own if not more else hashlib.sha256(" ".join([own, *(_hash(Path(each)) for each in more)]).encode()).hexdigest(),
        "latent_space": _hash(out / "latent_space.npz"),
        "model": model_sha256,
    }


def _hashes_of(plan: Plan) -> dict[str, str]:
    """Return the SHA-256 of a session's files, or of a localizer's pictures, by their names in messages."""
    if not plan.localizer:
        return hashes(plan.out, plan.decoder, plan.model_sha256, plan.config.decoder.more_folders)
    pictures = sorted({f"{trial.name} {trial.sha256}" for trial in plan.trials})
    return {"session": _hash(plan.out / "session.toml"), "pictures": hashlib.sha256("\n".join(pictures).encode()).hexdigest()}


def _machine() -> dict[str, Any]:
    """Return a description of the session's machine."""
    words = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    processor = next((line.partition(":")[2].strip() for line in words if line.startswith("model name")), platform.processor())
    gpus: list[str] = []
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        gpus = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpus": os.cpu_count(), "processor": processor, "memory_bytes": memory, "gpus": gpus}


def _installed() -> dict[str, str]:
    """Return the versions of all installed packages, from their metadata folders' names (PyPA), without opening files."""
    found: dict[str, str] = {}
    for place in filter(os.path.isdir, sys.path):
        for entry in sorted(name for name in os.listdir(place) if name.endswith(".dist-info")):
            name, _, version = entry.removesuffix(".dist-info").partition("-")
            found.setdefault(name.lower(), version)
    return dict(sorted(found.items()))


def _blas() -> list[str]:
    """Return the linear algebra libraries and their processor targets, which affect the last digits."""
    from threadpoolctl import threadpool_info

    names = ("internal_api", "version", "architecture")
    return sorted({" ".join(str(each.get(name) or "?") for name in names) for each in threadpool_info() if each.get("user_api") == "blas"})


def _source() -> str:
    """Return the SHA-256 of rtevo's own modules, because many versions under development share one number."""
    top, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(top.rglob("*.py")):
        digest.update(file.relative_to(top).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _provenance(plan: Plan) -> dict[str, Any]:
    installed = _installed()
    return {
        "rtevo": __version__,
        "rtevo_sha256": _source(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **_machine(),
        "blas": _blas(),
        "packages": {name: installed[key] for name in PACKAGES if (key := name.replace("-", "_")) in installed},
        "installed": installed,
        "sha256": _hashes_of(plan),
    }


def open_record(plan: Plan) -> None:
    """Write the records before the first volume: the resolved session file, versions and hashes, the log's first record."""
    from rtevo.record import LOG, SCHEMA, LogWriter, reserve

    reserve(plan.out)
    config = absolute(
        replace(
            plan.config, acquisition=replace(plan.config.acquisition, tr_s=plan.tr_s), record=replace(plan.config.record, out=str(plan.out))
        )
    )
    if not plan.part:
        like = ""
        with suppress(OSError, ValueError):
            like = plan.session_file.read_text(encoding="utf-8") if plan.session_file else ""
        (plan.out / "session.toml").write_text(dump(config, like), encoding="utf-8")
    provenance = _provenance(plan)
    name = f"provenance-{plan.part}.json" if plan.part else "provenance.json"
    (plan.out / name).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    state = "taken over" if config.decoder.continue_from else "new"
    with LogWriter(plan.out / LOG) as log:
        log.append(
            "start",
            {
                "schema": SCHEMA,
                "part": plan.part,
                "first_volume": plan.first_volume,
                "decoder_state": ("rebaselined" if plan.rebaseline else "kept") if plan.part else state,
                "sha256": provenance["sha256"],
                "rtevo": __version__,
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "participant": config.session.participant,
                "condition": plan.condition if plan.localizer else config.session.condition,
                "source": config.acquisition.source,
                "seed": config.session.seed,
                "speed": config.session.speed,
                "tr_s": plan.tr_s,
                "cadence_s": config.presentation.image_s + config.presentation.washout_s,
                "settings": asdict(config),
                "provenance": provenance,
                **({"trials": [trial.fields() for trial in plan.trials]} if plan.localizer else {}),
                **_of_visit(plan),
            },
        )


def _of_visit(plan: Plan) -> dict[str, str]:
    """Return which run a run of a visit follows, and which it repeats."""
    if plan.visit is None:
        return {}
    return {"follows": plan.visit.follows} | ({"repeats": plan.visit.repeats} if plan.visit.repeats else {})

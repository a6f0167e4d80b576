"""Download of a known model from the Hugging Face hub: pinned, checked, and resumed after an interruption.

Nothing else in rtevo reaches a network. The download is recorded beside the model: ``rtevo-model.json`` names repository and commit of each
file, and every later check compares the files with ``SHA256SUMS``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rtevo.errors import ConfigError, DataError, ModelError
from rtevo.generate.folder import describe
from rtevo.outside import read_json

__all__ = ["KNOWN", "LOCK", "Known", "Source", "download", "plan"]

LOCK = "rtevo-model.json"
"""File beside the model that records the downloaded files and their sources."""

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Source:
    """Files of one repository.

    Parameters
    ----------
    repository : str
        ``OWNER/NAME`` on the hub.
    revision : str
        Commit. Empty: the latest at the first download, and from then on the commit in the lock.
    licence : str
    files : mapping of str to str
        From names in the repository to names in the model's folder.
    non_commercial : bool
        Whether the licence must be agreed to.
    """

    repository: str
    revision: str
    licence: str
    files: Mapping[str, str]
    non_commercial: bool = False

    @property
    def url(self) -> str:
        """Address of the licence."""
        return f"https://huggingface.co/{self.repository}"


@dataclass(frozen=True)
class Known:
    """A known model.

    Parameters
    ----------
    title : str
    sources : tuple of Source
    settings : mapping of str to str or number
        Keys that it needs in the session file's [generator].
    """

    title: str
    sources: tuple[Source, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _tokenizer(folder: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"))


def _network(folder: str, stem: str = "diffusion_pytorch_model.fp16") -> tuple[str, str]:
    return f"{folder}/config.json", f"{folder}/{stem}.safetensors"


_SCHEDULER = "scheduler/scheduler_config.json"
_SD15 = Source(
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    "CreativeML Open RAIL-M",
    _same(
        "model_index.json", _SCHEDULER, *_tokenizer("tokenizer"), *_network("text_encoder", "model.fp16"), *_network("unet"),
        *_network("vae"), "feature_extractor/preprocessor_config.json",
    ),
)  # fmt: skip
_XL_FILES = _same(
    "model_index.json", _SCHEDULER, *_tokenizer("tokenizer"), *_tokenizer("tokenizer_2"), *_network("text_encoder", "model.fp16"),
    *_network("text_encoder_2", "model.fp16"), *_network("unet"),
)  # fmt: skip
_SDXL = Source(
    "stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b", "CreativeML Open RAIL++-M", _XL_FILES
)
_TURBO = Source(
    "stabilityai/sdxl-turbo", "71153311d3dbb46851df1931d3ca6e939de83304", "Stability AI Non-Commercial Research Community License",
    _XL_FILES, non_commercial=True,
)  # fmt: skip
_XL_VAE = Source(  # the published decoder overflows half precision
    "madebyollin/sdxl-vae-fp16-fix",
    "207b116dae70ace3637169f1ddd2434b91b3a8cd",
    "MIT",
    {"config.json": "vae/config.json", "diffusion_pytorch_model.safetensors": "vae/diffusion_pytorch_model.safetensors"},
)
_LCM_SD15 = Source(
    "latent-consistency/lcm-lora-sdv1-5", "cf2fced511dbe7e26c8d1d397e728fbab875db4b", "CreativeML Open RAIL++-M",
    {"pytorch_lora_weights.safetensors": "lora/lcm-lora-sdv1-5.safetensors"},
)  # fmt: skip


def _adapter(name: str, encoder: str) -> Source:
    """An IP-Adapter and its image encoder: OpenCLIP's ViT-H in ``models/``, ViT-bigG in ``sdxl_models/``."""
    files = {f"{name}.safetensors": f"ip_adapter/{Path(name).name}.safetensors"}
    files |= {f"{encoder}/{file}": f"image_encoder/{file}" for file in ("config.json", "model.safetensors")}
    return Source("h94/IP-Adapter", "018e402774aeeddd60609b4ecdb7e298259dc729", "Apache-2.0", files)


_VIT_H, _VIT_BIGG = "models/image_encoder", "sdxl_models/image_encoder"
_KANDINSKY_DECODER = Source(
    "kandinsky-community/kandinsky-2-2-decoder", "", "Apache-2.0",
    _same("model_index.json", _SCHEDULER, *_network("unet", "diffusion_pytorch_model"), *_network("movq", "diffusion_pytorch_model")),
)  # fmt: skip
_KANDINSKY_PRIOR = Source(
    "kandinsky-community/kandinsky-2-2-prior", "", "Apache-2.0",
    _same(*_network("image_encoder", "model"), "image_processor/preprocessor_config.json"),
)  # fmt: skip

KNOWN: dict[str, Known] = {
    "sd15-lcm": Known(
        "Stable Diffusion 1.5 in 4 steps (LCM-LoRA), 1024-d embeddings (ViT-H), 512 px",
        (_SD15, _LCM_SD15, _adapter("models/ip-adapter_sd15", _VIT_H)),
        {"scheduler": "lcm", "steps": 4, "guidance_scale": 1.0},
    ),
    "sd15": Known(
        "Stable Diffusion 1.5, 1024-d embeddings (ViT-H), 512 px",
        (_SD15, _adapter("models/ip-adapter_sd15", _VIT_H)),
        {"scheduler": "dpm++2m", "steps": 15, "guidance_scale": 5.0},
    ),
    "sdxl-turbo": Known(
        "Stable Diffusion XL Turbo in 4 steps, 1024-d embeddings (ViT-H), 512 px",
        (_TURBO, _XL_VAE, _adapter("sdxl_models/ip-adapter_sdxl_vit-h", _VIT_H)),
        {"scheduler": "euler", "steps": 4, "guidance_scale": 1.0},
    ),
    "sdxl": Known(
        "Stable Diffusion XL, 1280-d embeddings (ViT-bigG), 1024 px",
        (_SDXL, _XL_VAE, _adapter("sdxl_models/ip-adapter_sdxl", _VIT_BIGG)),
        {"scheduler": "dpm++2m", "steps": 15, "guidance_scale": 5.0},
    ),
    "sdxl-vit-h": Known(
        "Stable Diffusion XL, 1024-d embeddings (ViT-H), 1024 px",
        (_SDXL, _XL_VAE, _adapter("sdxl_models/ip-adapter_sdxl_vit-h", _VIT_H)),
        {"scheduler": "dpm++2m", "steps": 15, "guidance_scale": 5.0},
    ),
    "kandinsky22": Known(
        "Kandinsky 2.2's decoder, 1280-d embeddings (ViT-bigG), 512 px",
        (_KANDINSKY_DECODER, _KANDINSKY_PRIOR),
        {"scheduler": "ddim", "steps": 15, "guidance_scale": 4.0},
    ),
}
"""Models for :func:`download`. Their commits come from public pages, not from the hub, which refuses unknown commits."""


def plan(known: Known, folder: Path) -> list[str]:
    """Return lines that describe what :func:`download` would do; without a network."""
    lines = [f"{known.title}, to {folder}"]
    there = _locked(folder)
    for source in known.sources:
        commit = source.revision or _commit_of(there, source.repository) or "the latest commit, also for later downloads"
        lines.append(f"{source.repository} at {commit}")
        lines.append(f"  licence: {source.licence}{', not for commercial use' if source.non_commercial else ''} ({source.url})")
        lines += [f"  {'have' if own in there and (folder / own).is_file() else 'get '} {own}" for own in source.files.values()]
    lines.append("[generator]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in known.settings.items()))
    return lines


def download(known: Known, folder: Path, tell: Callable[[str], None] = lambda _: None, endpoint: str | None = None) -> None:
    """Download a model's files, or the missing ones.

    Every file is compared with the hub's hash at the pinned commit; a file of an earlier call also with the hash recorded then. An
    interrupted file is resumed.

    Parameters
    ----------
    known : Known
        One of `KNOWN`.
    folder : Path
        A new folder, or one that this function began.
    tell : callable, optional
        Called with one line for each step of the work.
    endpoint : str, optional
        Address of the hub. None: as ``huggingface_hub`` is set.

    Raises
    ------
    ConfigError
        The folder holds other files.
    ModelError
        The hub cannot be reached or refuses, a file differs from the published one, or the parts do not make a model.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / LOCK).is_file():
        raise ConfigError(f"{folder}: expected a new folder, or one with a download that was begun ({LOCK}), found another")
    folder.mkdir(parents=True, exist_ok=True)
    there = _locked(folder)
    _write_lock(folder, there)
    for source in known.sources:
        _get(source, folder, there, tell, endpoint)
    sums = sorted(f"{entry['sha256']}  {name}" for name, entry in there.items())
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    shutil.rmtree(folder / ".get", ignore_errors=True)
    describe(folder)
    tell(f"complete: {len(there)} files, {sum(entry['size'] for entry in there.values()) / 1e9:.2f} GB in {folder}")


def _get(source: Source, folder: Path, there: dict[str, dict[str, Any]], tell: Callable[[str], None], endpoint: str | None) -> None:
    """Download one repository's files."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi(endpoint=endpoint)
    where = f"{source.repository} on {endpoint or api.endpoint}"
    missing = [name for name, own in source.files.items() if not _is_whole(folder, own, there)]
    if not missing:
        tell(f"{source.repository}: have all {len(source.files)} files")
        return
    try:
        revision = source.revision or _commit_of(there, source.repository) or str(api.model_info(source.repository).sha)
        infos = {info.path: info for info in api.get_paths_info(source.repository, missing, revision=revision) if hasattr(info, "blob_id")}
        lacking = sorted(set(missing) - set(infos))
        if lacking:
            raise ModelError(f"{where} at {revision}: expected {', '.join(lacking)}, found none")
        for name in missing:
            own, info = source.files[name], infos[name]
            tell(f"{source.repository}: {name}, {info.size / 1e6:.1f} MB")
            got = _fetch(source.repository, name, revision, folder / ".get" / source.repository.replace("/", "--") / name, endpoint)
            digest = _check(got, info, there.get(own), f"{where} {name}")
            (folder / own).parent.mkdir(parents=True, exist_ok=True)
            os.replace(got, folder / own)
            there[own] = {"repository": source.repository, "commit": revision, "file": name, "size": info.size, "sha256": digest}
            _write_lock(folder, there)
    except ModelError:
        raise
    except Exception as problem:  # errors of the client, of its transport, of the system
        raise ModelError(
            f"{where}: expected its files, but: {problem}; downloaded files are kept: repeat the command to continue"
        ) from problem


def _fetch(repository: str, name: str, revision: str, file: Path, endpoint: str | None) -> Path:
    """Download a file, or the rest of it: the client's own downloads start again at each call."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("r+b" if file.exists() else "w+b") as stream:
        there = stream.seek(0, os.SEEK_END)
        http_get(hf_hub_url(repository, name, revision=revision, endpoint=endpoint), stream, resume_size=there, headers=build_hf_headers())
    return file


def _check(file: Path, info: Any, before: Mapping[str, Any] | None, what: str) -> str:
    """Compare a file with the hub's hash and with its earlier hash; return its SHA-256. A wrong file is deleted."""
    sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            sha256.update(chunk)
            if info.lfs is None:  # small files are in the repository itself, under git's hash
                git.update(chunk)
    expected, found = (info.lfs.sha256, sha256.hexdigest()) if info.lfs is not None else (info.blob_id, git.hexdigest())
    if before is not None and before["sha256"] != sha256.hexdigest():
        expected, found = before["sha256"], sha256.hexdigest()
    if expected != found:
        file.unlink()
        raise ModelError(
            f"{what}: expected a file with hash {expected[:16]}, got {found[:16]}: deleted; repeat the command to download it again"
        )
    return sha256.hexdigest()


def _is_whole(folder: Path, own: str, there: Mapping[str, Mapping[str, Any]]) -> bool:
    return own in there and (folder / own).is_file() and (folder / own).stat().st_size == there[own]["size"]


def _commit_of(there: Mapping[str, Mapping[str, Any]], repository: str) -> str:
    """Return the commit from which an earlier call downloaded a repository's files."""
    return next((str(entry["commit"]) for entry in there.values() if entry["repository"] == repository), "")


def _locked(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the downloaded files, by names in the folder."""
    file = folder / LOCK
    if not file.is_file():
        return {}
    try:
        return dict(read_json(file)["files"])
    except (OSError, DataError, ValueError, KeyError, TypeError) as problem:
        raise ConfigError(f"{file}: expected the record of a download, found something else: {problem}") from None


def _write_lock(folder: Path, there: Mapping[str, Mapping[str, Any]]) -> None:
    fresh = folder / f"{LOCK}.new"
    fresh.write_text(json.dumps({"files": dict(sorted(there.items()))}, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, folder / LOCK)

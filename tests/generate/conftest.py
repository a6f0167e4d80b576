"""The built-in model, and model folders that are all configuration."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from rtevo.generate import TINY_UNCLIP


@pytest.fixture(scope="session")
def tiny() -> Path:
    """Folder of the built-in model."""
    return TINY_UNCLIP


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach a network fails the test."""

    def refuse(*args: Any, **_: Any) -> NoReturn:
        raise AssertionError(f"network access: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write_weights(file: Path, size: int = 16) -> None:
    """Write the smallest safetensors file: one tensor of `size` bytes."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


def write_model(folder: Path, embedding_size: int = 1024, side: int = 96) -> Path:
    """Write a folder that has the configuration of Stable unCLIP 2.1 and weights that are not."""
    cross = 1024
    configs: dict[str, tuple[str, dict[str, Any]]] = {
        "feature_extractor": ("preprocessor_config.json", {}),
        "image_encoder": ("config.json", {"projection_dim": embedding_size}),
        "image_normalizer": ("config.json", {"embedding_dim": embedding_size}),
        "image_noising_scheduler": ("scheduler_config.json", {"num_train_timesteps": 1000}),
        "tokenizer": ("tokenizer_config.json", {}),
        "text_encoder": ("config.json", {"hidden_size": cross}),
        "unet": (
            "config.json",
            {
                "sample_size": side,
                "in_channels": 4,
                "cross_attention_dim": cross,
                "class_embed_type": "projection",
                "projection_class_embeddings_input_dim": 2 * embedding_size,
            },
        ),
        "scheduler": ("scheduler_config.json", {}),
        "vae": ("config.json", {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableUnCLIPImg2ImgPipeline"}))
    for name, (file, config) in configs.items():
        (folder / name).mkdir()
        (folder / name / file).write_text(json.dumps(config))
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "tokenizer" / "merges.txt").write_text("")
    for name, stem in (("image_encoder", "model"), ("text_encoder", "model")):
        write_weights(folder / name / f"{stem}.safetensors")
    for name in ("image_normalizer", "unet", "vae"):
        write_weights(folder / name / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a model folder: ``model_folder(embedding_size=1024, side=96)``."""
    return lambda **kwargs: write_model(tmp_path / "model", **kwargs)

"""The kinds of models, in narrow versions of their true classes: each by both ways, and what is wrong with a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.errors import ConfigError, ModelError
from rtevo.generate import GeneratorSettings, load, probe
from rtevo.generate.check import check
from tests.support.random_model import KINDS, write_model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers")

PICTURE_TOLERANCE = 2
"""Grey levels: the same sums in another order."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp("models") / kind for kind in KINDS if not kind.startswith("sd")}
    for kind, folder in made.items():
        write_model(folder, kind, narrow=16, px=64, half=False)
    return made


@pytest.mark.parametrize(("kind", "embedding_size"), [("large", 64), ("small", 48), ("kandinsky", 80)])
def test_every_kind_paints_the_same_by_both_ways(folders: dict[str, Path], kind: str, embedding_size: int) -> None:
    assert probe(folders[kind]) == (embedding_size, (64, 64))
    embeddings = np.random.default_rng(0).standard_normal((2, embedding_size), np.float32)
    painted: dict[str, list[Any]] = {}
    for backend in ("eager", "compiled"):
        with load(GeneratorSettings(folders[kind], steps=2, scheduler="dpm++2m", device="cpu", backend=backend)) as generator:
            painted[backend] = [p.pixels for p in generator.paint(embeddings, [0, 0])]
            generator.reschedule("ddim", 3)
            generator.warm_up()
            painted[backend] += [p.pixels for p in generator.paint(embeddings[:1], [0])]
    for wanted, found in zip(painted["eager"], painted["compiled"], strict=True):
        assert np.abs(wanted.astype(int) - found).max() <= PICTURE_TOLERANCE
    assert np.abs(painted["eager"][0].astype(int) - painted["eager"][1]).mean() > 5  # the embedding is heard
    assert (painted["eager"][0] != painted["eager"][2]).any()


def test_kandinsky_is_checked_like_the_others(folders: dict[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    report = check(GeneratorSettings(steps=2, device="cpu"), folders["kandinsky"], said.append)  # its own scheduler draws noise
    assert "movq:" in " ".join(said)
    assert report.trial.change > 1
    with pytest.raises(ConfigError, match="noise_level: expected below 1 for this model"):
        load(GeneratorSettings(folders["kandinsky"], noise_level=1))
    with pytest.raises(
        ModelError, match=r"DDPMScheduler: expected a scheduler whose steps .* draw no noise .*choose another \[generator\] scheduler"
    ):
        load(GeneratorSettings(folders["kandinsky"], steps=2, device="cpu", backend="compiled"))
    bare = shutil.copytree(folders["kandinsky"], tmp_path / "bare", ignore=shutil.ignore_patterns("image_encoder"))
    with pytest.raises(
        ModelError, match="missing image_encoder; image_encoder and image_processor come from the folder of Kandinsky's prior"
    ):
        probe(bare)
    other = shutil.copytree(folders["kandinsky"], tmp_path / "other")
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps(config | {"encoder_hid_dim": 81}))
    with pytest.raises(ModelError, match=r"encoder_hid_dim: expected 80 \(the image encoder's projection_dim\), found 81"):
        probe(other)


def test_another_size(folders: dict[str, Path]) -> None:
    assert probe(folders["small"], 128) == (48, (128, 128))
    with load(GeneratorSettings(folders["small"], steps=1, device="cpu", px=128)) as generator:
        assert next(generator.paint(np.zeros((1, 48)), [0])).pixels.shape == (128, 128, 3)
    with pytest.raises(ConfigError, match=r"\[generator\] px: expected 0 or a multiple of 64 for small, got 100"):
        probe(folders["small"], 100)


def test_a_tiny_decoder(folders: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
    AutoencoderTiny(**widths).save_pretrained(tmp_path / "tiny")
    AutoencoderTiny(latent_channels=16, **widths).save_pretrained(tmp_path / "other")
    painted = {}
    for backend in ("eager", "compiled"):
        settings = GeneratorSettings(folders["large"], steps=1, device="cpu", tiny_vae=tmp_path / "tiny", backend=backend)
        with load(settings) as generator:
            assert "tiny decoder tiny" in generator.description
            painted[backend] = next(generator.paint(np.zeros((1, 64)), [0])).pixels
    assert np.abs(painted["eager"].astype(int) - painted["compiled"]).max() <= PICTURE_TOLERANCE
    with pytest.raises(ModelError, match=r"tiny_vae .*expected one for 4 latent channels and 8 pixels a latent \(the model's\), found 16"):
        load(GeneratorSettings(folders["large"], steps=1, device="cpu", tiny_vae=tmp_path / "other"))
    with pytest.raises(ModelError, match=r"tiny_vae .*nowhere: expected the folder of an AutoencoderTiny"):
        load(GeneratorSettings(folders["large"], steps=1, device="cpu", tiny_vae=tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="tiny_vae: expected none for Kandinsky"):
        load(GeneratorSettings(folders["kandinsky"], steps=1, device="cpu", tiny_vae=tmp_path / "tiny"))

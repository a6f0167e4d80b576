"""The compiled backend's own steps, on a CPU: the same pictures as the reference's, by another way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtevo.errors import ModelError
from rtevo.generate import Generator, GeneratorSettings, describe, load

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers")

PICTURE_TOLERANCE = 2
"""Grey levels: the same sums in another order."""

ENCODING_TOLERANCE = 0.1
"""Against a standard deviation of 1: the encoder sees pixels that Pillow resizes in fixed point, up to a grey level apart."""


@pytest.fixture
def embeddings() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((4, 64), np.float32)


@pytest.fixture(scope="module")
def compiled(tiny: Path) -> Iterator[Generator]:
    with load(GeneratorSettings(tiny, steps=4, device="cpu", backend="compiled")) as found:
        found.warm_up()
        yield found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch": 3},
        {"guidance_scale": 1.0},
        {"noise_level": 300},
        {"scheduler": "pndm"},
        {"scheduler": "dpm++2m"},
        {"scheduler": "unipc", "steps": 1},
    ],
    ids=str,
)
def test_pictures_are_the_references(tiny: Path, embeddings: NDArray[np.float32], changes: dict[str, Any]) -> None:
    seeds = np.arange(4, dtype=np.uint64)
    painted = {}
    for backend in ("eager", "compiled"):
        with load(GeneratorSettings(tiny, **({"steps": 4, "device": "cpu", "backend": backend} | changes))) as generator:
            assert generator.description.startswith(backend)
            painted[backend] = list(generator.paint(embeddings, seeds))
    for wanted, found in zip(painted["eager"], painted["compiled"], strict=True):
        assert np.abs(wanted.pixels.astype(int) - found.pixels).max() <= PICTURE_TOLERANCE
        assert np.abs(wanted.embedding - found.embedding).max() <= ENCODING_TOLERANCE


def test_nothing_is_left_from_one_picture_to_the_next(compiled: Generator, embeddings: NDArray[np.float32]) -> None:
    seeds = np.array([3, 4, 3, 8], np.uint64)
    together = [painted.pixels for painted in compiled.paint(embeddings, seeds)]
    assert len({picture.tobytes() for picture in together}) == 4  # each its own memory, not the static buffer
    for i in (3, 0):
        np.testing.assert_array_equal(next(compiled.paint(embeddings[i : i + 1], seeds[i : i + 1])).pixels, together[i])


@pytest.mark.parametrize(("value", "match"), [(float("nan"), "expected finite numbers, got 12288 of 12288"), (-1e4, "entirely black")])
def test_broken_pictures_are_refused(tiny: Path, value: float, match: str) -> None:
    import torch

    with load(GeneratorSettings(tiny, steps=1, device="cpu", backend="compiled")) as generator:
        with torch.no_grad():
            generator._pipe.vae.decoder.conv_out.bias.fill_(value)  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match=match):
            generator.warm_up()


def test_another_picture_than_the_references_is_refused(tiny: Path) -> None:
    import torch

    with load(GeneratorSettings(tiny, steps=2, device="cpu", backend="compiled")) as generator:
        with torch.no_grad():
            generator._denoiser.time_embeddings.add_(3.0)  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match=r"expected the reference's picture within .* choose backend eager"):
            list(generator.paint(np.zeros((1, 64)), np.zeros(1, np.uint64)))


def test_a_closed_generator_paints_no_more(tiny: Path) -> None:
    generator = load(GeneratorSettings(tiny, steps=1, device="cpu", backend="compiled"))
    generator.close()
    with pytest.raises(ValueError, match="has been closed"):
        generator.paint(np.zeros((1, 64)), np.zeros(1, np.uint64))


def test_a_pipeline_that_it_does_not_know(tiny: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny, tmp_path / "other")
    file = other / "feature_extractor" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"resample": 2}))
    with pytest.raises(ModelError, match=r"resample: expected 3, found .*: choose backend eager"):
        load(GeneratorSettings(other, steps=1, device="cpu", backend="compiled"))


@pytest.mark.slow
def test_the_compiler_sees_whole_graphs(tiny: Path, embeddings: NDArray[np.float32], compiled: Generator) -> None:
    """Traced as on a GPU, with nothing that breaks a graph; run as traced, without the minutes of making machine code."""
    from rtevo.generate.compiled import CompiledGenerator

    settings = GeneratorSettings(tiny, steps=4, device="cpu", backend="compiled")
    with CompiledGenerator(describe(tiny), settings, compiler="eager") as generator:
        found = next(generator.paint(embeddings[:1], np.zeros(1, np.uint64))).pixels
    wanted = next(compiled.paint(embeddings[:1], np.zeros(1, np.uint64))).pixels
    assert np.abs(found.astype(int) - wanted).max() <= PICTURE_TOLERANCE


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (50, 75), (32, 32)])
def test_the_viewer_is_the_feature_extractor(tiny: Path, size: tuple[int, int]) -> None:
    import torch
    import transformers
    from PIL import Image

    from rtevo.generate.viewer import Viewer

    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    extractor = kind.from_pretrained(tiny / "feature_extractor", local_files_only=True)
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    wanted = extractor(images=Image.fromarray(picture), return_tensors="pt").pixel_values
    viewer = Viewer(extractor.to_dict())
    found = viewer(torch.from_numpy(picture).permute(2, 0, 1).float())
    assert found.shape == wanted.shape
    levels = ((found - wanted) / viewer.gain).abs()
    assert levels.max() < 1.01  # one grey level
    assert levels.mean() < 0.1


def test_auto_falls_back_and_says_so(tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    from rtevo.generate import backends
    from rtevo.generate.eager import EagerGenerator

    with load(GeneratorSettings(tiny, steps=1, device="cpu")) as generator:
        assert type(generator) is EagerGenerator
    monkeypatch.setattr(backends, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(backends.CompiledGenerator, "warm_up", broken)
    with load(GeneratorSettings(tiny, steps=1, device="cpu")) as generator:
        assert type(generator) is EagerGenerator
    assert "cannot take compiled: no such luck" in caplog.text
    assert "falls back to eager, which is slower" in caplog.text


def broken(_: Any) -> None:
    raise ModelError("no such luck")


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_the_denoiser_is_the_network(guidance_scale: float) -> None:
    """On a network of Stable unCLIP 2.1's plan, narrow: attention on three levels, two blocks a level, heads that double."""
    import torch
    from diffusers import UNet2DConditionModel

    from rtevo.generate.denoiser import Denoiser

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 64, 64),
        norm_num_groups=8,
        attention_head_dim=(2, 4, 4, 4),
        cross_attention_dim=24,
        use_linear_projection=True,
        upcast_attention=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=20,
    ).eval()
    latents, labels, prompt = torch.randn(2, 4, 16, 16), torch.randn(2, 20), torch.randn(1, 7, 24)
    times = torch.tensor([981, 501, 1])
    with torch.no_grad():
        on, off = (
            unet(latents, times[1], encoder_hidden_states=prompt.expand(2, -1, -1), class_labels=given, return_dict=False)[0]
            for given in (labels, torch.zeros_like(labels))
        )
        wanted = off + guidance_scale * (on - off)
        denoiser = Denoiser(unet, prompt, times, guidance_scale, (16, 16))
        found = denoiser(latents, denoiser.time_embeddings[1:2], denoiser.embed(labels))
        other = denoiser(latents, denoiser.time_embeddings[1:2], denoiser.embed(labels + 1))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found - other).abs().mean() > 1e-3
    unet.register_to_config(class_embeddings_concat=True)
    with pytest.raises(ModelError, match="class_embeddings_concat = True: choose backend eager"):
        Denoiser(unet, prompt, times, guidance_scale, (16, 16))

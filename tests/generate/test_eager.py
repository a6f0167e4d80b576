"""The reference backend, on the tiny pipeline: the same code path as a full-size model's."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtevo.errors import ConfigError, ModelError
from rtevo.generate import Generator, GeneratorSettings, load

BATCH_TOLERANCE = 2
"""Grey levels by which pictures may differ between batch sizes: other matrix shapes round otherwise, ten steps over."""


@pytest.fixture(scope="module")
def generator(tiny: Path) -> Iterator[Generator]:
    with load(GeneratorSettings(tiny, steps=4, device="cpu")) as found:
        yield found


@pytest.fixture
def embeddings() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((4, 64), np.float32)


def pixels(generator: Generator, embeddings: Any, seeds: Any) -> NDArray[np.uint8]:
    return np.stack([painted.pixels for painted in generator.paint(embeddings, np.asarray(seeds, np.uint64))])


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean absolute difference, grey levels."""
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.usefixtures("no_network")
def test_it_loads_offline_and_quietly(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    with load(GeneratorSettings(tiny, steps=2, device="cpu"), told.append) as generator:
        generator.warm_up()
    assert any("loading" in line for line in told)
    assert tuple(capfd.readouterr()) == ("", "")


def test_what_comes_out(generator: Generator, embeddings: NDArray[np.float32]) -> None:
    assert generator.embedding_size == 64
    assert generator.image_size == (64, 64)
    found = list(generator.paint(embeddings, np.arange(4, dtype=np.uint64)))
    assert [painted.index for painted in found] == [0, 1, 2, 3]
    for painted in found:
        assert painted.pixels.shape == (64, 64, 3)
        assert painted.pixels.dtype == np.uint8
        assert painted.embedding.shape == (64,)
        assert painted.embedding.dtype == np.float32
    assert list(generator.paint(np.zeros((0, 64)), np.zeros(0, np.uint64))) == []


def test_a_picture_does_not_depend_on_its_company(generator: Generator, embeddings: NDArray[np.float32]) -> None:
    seeds = np.array([3, 2**64 - 1, 3, 8], np.uint64)
    together = pixels(generator, embeddings, seeds)
    for i in (3, 1):
        np.testing.assert_array_equal(pixels(generator, embeddings[i : i + 1], seeds[i : i + 1])[0], together[i])


def test_a_picture_hardly_depends_on_the_batch(tiny: Path, generator: Generator, embeddings: NDArray[np.float32]) -> None:
    with load(GeneratorSettings(tiny, steps=4, device="cpu", batch=3)) as batched:  # 3 and 1 of 4
        found = pixels(batched, embeddings, [0, 1, 2, 3]).astype(int)
    assert np.abs(found - pixels(generator, embeddings, [0, 1, 2, 3])).max() <= BATCH_TOLERANCE


def test_everything_that_should_change_a_picture_does(tiny: Path, generator: Generator, embeddings: NDArray[np.float32]) -> None:
    first = pixels(generator, embeddings[:1], [0])
    assert difference(first, pixels(generator, embeddings[1:2], [0])) > 10
    assert difference(first, pixels(generator, embeddings[:1], [1])) > 0.1
    for other in ({"noise_level": 500}, {"guidance_scale": 1.0}, {"guidance_scale": 8.0}, {"steps": 7}):
        with load(GeneratorSettings(tiny, **({"steps": 4, "device": "cpu"} | other))) as changed:
            assert difference(first, pixels(changed, embeddings[:1], [0])) > 0.1, other


@pytest.mark.parametrize(("guidance_scale", "noise_level", "scheduler"), [(3.0, 0, "model"), (1.0, 40, "model"), (3.0, 0, "pndm")])
def test_it_is_the_plain_pipeline_bit_for_bit(
    tiny: Path, embeddings: NDArray[np.float32], guidance_scale: float, noise_level: int, scheduler: str
) -> None:
    import torch
    from diffusers import PNDMScheduler, StableUnCLIPImg2ImgPipeline

    plain = StableUnCLIPImg2ImgPipeline.from_pretrained(tiny, local_files_only=True).to(torch.float32)  # stored in half precision
    plain.set_progress_bar_config(disable=True)
    if scheduler == "pndm":
        plain.scheduler = PNDMScheduler.from_config(plain.scheduler.config, skip_prk_steps=True)
    wanted = plain(
        image_embeds=torch.from_numpy(embeddings[:2]),
        prompt=["", ""],
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        noise_level=noise_level,
        output_type="pil",
    ).images
    settings = GeneratorSettings(
        tiny, steps=4, device="cpu", batch=2, guidance_scale=guidance_scale, noise_level=noise_level, scheduler=scheduler
    )
    with load(settings) as generator:
        found = list(generator.paint(embeddings[:2], np.array([5, 6], np.uint64)))
    with torch.inference_mode():
        for picture, painted in zip(wanted, found, strict=True):
            # one image is decoded at a time here, two there
            assert np.abs(np.asarray(picture).astype(int) - painted.pixels).max() <= 1
            seen = plain.feature_extractor(images=[np.array(painted.pixels)], return_tensors="pt").pixel_values
            np.testing.assert_array_equal(plain.image_encoder(seen).image_embeds[0].numpy(), painted.embedding)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers")
@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpm++2m", "unipc"])
def test_schedulers(tiny: Path, generator: Generator, embeddings: NDArray[np.float32], scheduler: str) -> None:
    with load(GeneratorSettings(tiny, steps=4, device="cpu", scheduler=scheduler)) as other:
        found = pixels(other, embeddings[:2], [0, 0])
        np.testing.assert_array_equal(pixels(other, embeddings[:2], [0, 0]), found)  # nothing is left from one to the next
    assert difference(found[0], found[1]) > 10
    assert difference(found, pixels(generator, embeddings[:2], [0, 0])) < 40  # the same picture, more or less


def test_images_come_one_by_one(tiny: Path, embeddings: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    with load(GeneratorSettings(tiny, steps=1, device="cpu", batch=2)) as generator:
        decoded: list[int] = []
        decode = generator._decode  # type: ignore[attr-defined]
        monkeypatch.setattr(generator, "_decode", lambda latents: decoded.append(len(latents)) or decode(latents))
        stream = generator.paint(embeddings, np.zeros(4, np.uint64))
        assert decoded == []
        next(stream)
        assert decoded == [1]
        assert not torch.is_inference_mode_enabled()  # the caller is not left in it between two images
        next(stream)
        assert decoded == [1, 1]


def test_requests_are_checked_by_the_call_itself(generator: Generator, embeddings: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"expected shape \(n, 64\)"):
        generator.paint(embeddings[:, :5], [0, 1, 2, 3])


def test_a_closed_generator_paints_no_more(tiny: Path, embeddings: NDArray[np.float32]) -> None:
    with load(GeneratorSettings(tiny, steps=1, device="cpu")) as generator:
        pass
    with pytest.raises(ValueError, match="has been closed"):
        generator.paint(embeddings, np.zeros(4, np.uint64))


@pytest.mark.parametrize(("value", "match"), [(float("nan"), "expected finite numbers, got 12288 of 12288"), (-1e4, "entirely black")])
def test_broken_pictures_are_refused(tiny: Path, value: float, match: str) -> None:
    import torch

    with load(GeneratorSettings(tiny, steps=1, device="cpu")) as generator:
        with torch.no_grad():
            generator._pipe.vae.decoder.conv_out.bias.fill_(value)  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match=match):
            generator.warm_up()


def test_running_out_of_memory_says_what_to_do(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def burst(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with load(GeneratorSettings(tiny, steps=1, device="cpu")) as generator:
        monkeypatch.setattr(generator, "_decode", burst)
        with pytest.raises(ModelError, match=r"out of memory with batch 1 at 64 x 64 px; .* lower \[generator\] batch"):
            generator.warm_up()


def test_what_cannot_be_loaded(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"noise_level: expected below 1000 for this model, got 1000"):
        load(GeneratorSettings(tiny, noise_level=1000))
    with pytest.raises(ModelError, match="found nothing there"):
        load(GeneratorSettings(tmp_path / "none"))


def test_weights_in_half_precision_files(tiny: Path, tmp_path: Path, embeddings: NDArray[np.float32], generator: Generator) -> None:
    half = shutil.copytree(tiny, tmp_path / "half")
    for file in half.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    with load(GeneratorSettings(half, steps=4, device="cpu")) as found:
        np.testing.assert_array_equal(pixels(found, embeddings, [0] * 4), pixels(generator, embeddings, [0] * 4))


@pytest.mark.parametrize("component", ["unet", "image_encoder"])
def test_weights_of_another_network(tiny: Path, tmp_path: Path, component: str) -> None:
    other = shutil.copytree(tiny, tmp_path / "other")
    (weights,) = (other / component).glob("*.safetensors")
    shutil.copy(other / "vae" / "diffusion_pytorch_model.safetensors", weights)
    with pytest.raises(ModelError, match=rf"other/{component}: expected weights for \S+ and \d+ others, found none"):
        load(GeneratorSettings(other, device="cpu"))


def test_a_device_that_is_not_there(tiny: Path) -> None:
    import torch

    number = torch.cuda.device_count()
    with pytest.raises(ModelError, match=r"\[generator\] device: expected a CUDA device"):
        load(GeneratorSettings(tiny, device=f"cuda:{number}"))


def test_threads_are_set(tiny: Path) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        with load(GeneratorSettings(tiny, device="cpu", threads=2)) as generator:
            assert torch.get_num_threads() == 2
            assert "2 threads" in generator.description
    finally:
        torch.set_num_threads(before)
    assert "torch" in sys.modules


def test_pictures_follow_their_embeddings(tiny: Path) -> None:
    """The built-in model serves to show evolution: colour and layout must vary with the embedding, strongly and smoothly."""
    rng = np.random.default_rng(1)
    some = rng.standard_normal((12, 64))
    near = (some + 0.25 * rng.standard_normal(some.shape)) / np.hypot(1, 0.25)
    seeds = rng.integers(0, 1 << 60, (3, 12))
    with load(GeneratorSettings(tiny, steps=5, device="cpu", batch=6)) as generator:
        first = list(generator.paint(some, seeds[0]))
        a = coarse(np.stack([painted.pixels for painted in first]))
        b = coarse(pixels(generator, near, seeds[1]))
        again = coarse(pixels(generator, np.stack([painted.embedding for painted in first]), seeds[2]))
    spread = a.var(0).mean()
    colours = a.mean((1, 2))
    assert (colours.std(0) > 15).all()  # grey levels, red, green and blue
    assert (a - colours[:, None, None]).std() > 20
    assert likeness(a, b, spread) > 0.6  # measured 0.72
    assert likeness(a, again, spread) > 0.4  # measured 0.6: parents may be the embeddings that pictures re-encode to


def coarse(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean colours of 4 x 4 fields."""
    return pictures.reshape(len(pictures), 4, 16, 4, 16, 3).mean((2, 4))


def likeness(a: NDArray[np.float64], b: NDArray[np.float64], spread: float) -> float:
    """1 for the same pictures, 0 for unrelated ones."""
    return float(1 - ((a - b) ** 2).mean() / (2 * spread))

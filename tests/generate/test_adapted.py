"""Stable Diffusion with an IP-Adapter: diffusers' own picture by both ways, few-step schedulers, LoRA, and what is wrong with a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtevo.errors import ConfigError, ModelError
from rtevo.generate import GeneratorSettings, load, probe
from rtevo.generate.check import check
from rtevo.generate.encode import encode
from tests.support.random_model import write_model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers")

PICTURE_TOLERANCE = 1
"""Grey levels: the same sums in another order."""

SIZES = {"sd15": 64, "sdxl": 80}
SEED = 7


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp("adapted") / kind for kind in SIZES}
    for kind, folder in made.items():
        write_model(folder, kind, narrow=16, px=64, half=False)
    return made


def embeddings(kind: str) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((2, SIZES[kind]), np.float32)


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> Callable[..., NDArray[np.int64]]:
    """diffusers' own pipeline, loaded and called as its documentation says."""
    import diffusers
    import torch
    import transformers

    pipes: dict[str, Any] = {}
    for kind, folder in folders.items():
        made = {"sd15": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}[kind]
        encoder = transformers.CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
        more: dict[str, Any] = {"safety_checker": None} if kind == "sd15" else {"add_watermarker": False}
        pipe = made.from_pretrained(folder, image_encoder=encoder, **more)
        pipe.load_ip_adapter(str(folder), "ip_adapter", f"ip-adapter_{kind}.safetensors", image_encoder_folder=None)
        pipe.set_progress_bar_config(disable=True)
        pipes[kind] = pipe, pipe.scheduler

    def paint(kind: str, embedding: NDArray[np.float32], steps: int, guidance_scale: float, scheduler: Any = None) -> NDArray[np.int64]:
        pipe, own = pipes[kind]
        pipe.scheduler = own if scheduler is None else scheduler.from_config(own.config)
        told = torch.from_numpy(embedding)[None, None]
        if guidance_scale > 1:
            told = torch.cat([torch.zeros_like(told), told])
        picture = pipe(
            prompt="",
            ip_adapter_image_embeds=[told],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(SEED),
        ).images[0]
        return np.asarray(picture).astype(np.int64)

    return paint


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("kind", SIZES)
def test_pictures_are_those_of_diffusers(
    folders: dict[str, Path], plain: Callable[..., NDArray[np.int64]], kind: str, guidance_scale: float
) -> None:
    assert probe(folders[kind]) == (SIZES[kind], (64, 64))
    asked = embeddings(kind)
    wanted = [plain(kind, asked[0], steps, guidance_scale) for steps in (2, 4)]
    for backend in ("eager", "compiled"):
        settings = GeneratorSettings(folders[kind], steps=2, guidance_scale=guidance_scale, device="cpu", backend=backend, batch=2)
        with load(settings) as generator:
            first = next(generator.paint(asked[:1], [SEED]))
            other = next(generator.paint(asked[1:], [SEED])).pixels.astype(int)
            together = [p.pixels.astype(int) for p in generator.paint(np.stack([asked[1], asked[0], asked[1]]), [1, SEED, SEED])]
            generator.reschedule("model", 4)
            longer = next(generator.paint(asked[:1], [SEED])).pixels
        assert np.abs(first.pixels - wanted[0]).max() <= PICTURE_TOLERANCE
        assert np.abs(longer - wanted[1]).max() <= PICTURE_TOLERANCE
        assert np.abs(other - wanted[0]).mean() > 5  # the embedding is heard
        assert np.abs(together[1] - wanted[0]).max() <= PICTURE_TOLERANCE
        assert np.abs(together[2] - other).max() <= PICTURE_TOLERANCE
        assert first.embedding.shape == (SIZES[kind],)


@pytest.mark.parametrize("scheduler", ["lcm", "euler"])
def test_schedulers_for_few_steps(folders: dict[str, Path], plain: Callable[..., NDArray[np.int64]], scheduler: str) -> None:
    import diffusers

    asked = embeddings("sd15")
    own = None
    if scheduler == "lcm":  # draws noise at every step
        own = plain("sd15", asked[0], 3, 1.0, diffusers.LCMScheduler)
    for backend in ("eager", "compiled"):
        settings = GeneratorSettings(folders["sd15"], steps=3, guidance_scale=1.0, scheduler=scheduler, device="cpu", backend=backend)
        with load(settings) as generator:
            found = next(generator.paint(asked[:1], [SEED])).pixels.astype(int)
        own = found if own is None else own
        assert np.abs(found - own).max() <= PICTURE_TOLERANCE


def test_more_steps_than_a_scheduler_can_do(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"\[generator\] steps: expected a number that LCMScheduler can do"):
        load(GeneratorSettings(folders["sd15"], steps=80, scheduler="lcm", device="cpu"))


def test_a_network_that_is_told_the_guidance(folders: dict[str, Path], tmp_path: Path) -> None:
    """As models distilled by latent consistency are: guidance costs nothing there."""
    import safetensors.torch
    import torch

    told = shutil.copytree(folders["sd15"], tmp_path / "told")
    config = told / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"time_cond_proj_dim": 32}))
    weights = safetensors.torch.load_file(told / "unet" / "diffusion_pytorch_model.safetensors")
    width = weights["time_embedding.linear_1.weight"].shape[1]
    weights["time_embedding.cond_proj.weight"] = torch.randn((width, 32), generator=torch.Generator().manual_seed(0))
    safetensors.torch.save_file(weights, told / "unet" / "diffusion_pytorch_model.safetensors")
    painted = {}
    for guidance_scale in (4.0, 8.0):
        for backend in ("eager", "compiled"):
            with load(GeneratorSettings(told, steps=2, guidance_scale=guidance_scale, device="cpu", backend=backend)) as generator:
                painted[guidance_scale, backend] = next(generator.paint(embeddings("sd15")[:1], [SEED])).pixels.astype(int)
        assert np.abs(painted[guidance_scale, "eager"] - painted[guidance_scale, "compiled"]).max() <= PICTURE_TOLERANCE
    assert (painted[4.0, "eager"] != painted[8.0, "eager"]).any()


@pytest.mark.slow
def test_lora_is_merged_when_the_model_is_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    import safetensors.torch
    import torch

    layer, rank = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 2
    merged, separate = (shutil.copytree(folders["sd15"], tmp_path / name) for name in ("merged", "separate"))
    weights = safetensors.torch.load_file(merged / "unet" / "diffusion_pytorch_model.safetensors")
    draw = torch.Generator().manual_seed(0)
    up, down = torch.randn((32, rank), generator=draw), torch.randn((rank, 32), generator=draw)
    weights[f"{layer}.weight"] += up @ down
    safetensors.torch.save_file(weights, merged / "unet" / "diffusion_pytorch_model.safetensors")
    (separate / "lora").mkdir()
    stem = "lora_unet_" + layer.replace(".", "_")  # as LCM, Hyper-SD and Lightning publish theirs
    lora = {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down, f"{stem}.alpha": torch.tensor(float(rank))}
    safetensors.torch.save_file(lora, separate / "lora" / "few-steps.safetensors")
    painted = []
    for folder in (merged, separate, folders["sd15"]):
        with load(GeneratorSettings(folder, steps=2, guidance_scale=1.0, device="cpu", backend="compiled")) as generator:
            painted.append(next(generator.paint(embeddings("sd15")[:1], [SEED])).pixels.astype(int))
    assert np.abs(painted[0] - painted[1]).max() <= PICTURE_TOLERANCE
    assert np.abs(painted[0] - painted[2]).max() > PICTURE_TOLERANCE


def test_a_model_is_checked_like_the_others(folders: dict[str, Path], tmp_path: Path) -> None:
    import safetensors.torch

    said: list[str] = []
    check(GeneratorSettings(steps=2, device="cpu"), folders["sdxl"], said.append)
    assert "ip_adapter: ip-adapter_sdxl.safetensors" in said
    deaf = shutil.copytree(folders["sd15"], tmp_path / "deaf")
    (file,) = (deaf / "ip_adapter").glob("*")
    weights = safetensors.torch.load_file(file)
    for name in weights:
        if "to_v_ip" in name:
            weights[name].zero_()
    safetensors.torch.save_file(weights, file)
    with pytest.raises(ModelError, match="the network ignores its IP-Adapter"):
        check(GeneratorSettings(steps=2, device="cpu"), deaf)


def test_pictures_are_encoded_with_the_adapters_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    with load(GeneratorSettings(folders["sdxl"], steps=1, device="cpu")) as generator:
        painted = next(generator.paint(embeddings("sdxl")[:1], [SEED]))
    Image.fromarray(painted.pixels).save(tmp_path / "picture.png")
    np.testing.assert_allclose(encode([tmp_path / "picture.png"], folders["sdxl"], "cpu")[0], painted.embedding, atol=1e-5)


def test_what_is_wrong_with_a_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    import safetensors.torch

    broken = shutil.copytree(folders["sd15"], tmp_path / "broken")
    (file,) = (broken / "ip_adapter").glob("*")
    weights = safetensors.torch.load_file(file)
    shutil.copy(folders["sdxl"] / "ip_adapter" / "ip-adapter_sdxl.safetensors", broken / "ip_adapter" / "ip-adapter_sdxl.safetensors")
    with pytest.raises(ModelError, match=r"expected one file of an IP-Adapter's weights .* found ip-adapter_sd15.*, ip-adapter_sdxl"):
        probe(broken)
    file.unlink()
    with pytest.raises(ModelError, match=r"expected four times 48 rows .* and 64 columns .* found shape \[512, 80\]"):
        probe(broken)
    (broken / "ip_adapter" / "ip-adapter_sdxl.safetensors").unlink()
    with pytest.raises(ModelError, match=r"found none: Stable Diffusion needs an adapter for the embedding \(python -m rtevo"):
        probe(broken)
    safetensors.torch.save_file({"image_proj.latents": weights["image_proj.norm.weight"]}, file)
    with pytest.raises(ModelError, match=r"expected a global IP-Adapter .* found another kind"):
        probe(broken)
    shutil.rmtree(broken / "image_encoder")
    with pytest.raises(ModelError, match="missing image_encoder; image_encoder comes from the IP-Adapter's folder"):
        probe(broken)
    with pytest.raises(ConfigError, match="noise_level: expected below 1 for this model"):
        load(GeneratorSettings(folders["sd15"], noise_level=1))

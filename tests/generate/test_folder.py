"""Model folders are understood, or refused with a message that says what is wrong, without loading anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rtevo.errors import ModelError
from rtevo.generate import describe, probe

ModelFolderMaker = Callable[..., Path]


@pytest.mark.parametrize(("embedding_size", "side"), [(1024, 96), (768, 96), (768, 64)])
def test_large_and_small_models_are_told_apart(model_folder: ModelFolderMaker, embedding_size: int, side: int) -> None:
    assert probe(model_folder(embedding_size=embedding_size, side=side)) == (embedding_size, (8 * side, 8 * side))


def test_oblong_samples(model_folder: ModelFolderMaker) -> None:
    path = model_folder()
    change(path / "unet" / "config.json", sample_size=[64, 96])
    assert describe(path).image_size == (512, 768)
    assert describe(path).latent_shape == (4, 64, 96)


def test_variants_of_weights(model_folder: ModelFolderMaker) -> None:
    path = model_folder()
    assert [describe(path).variant("unet", half) for half in (False, True)] == [None, None]
    plain = path / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(plain, path / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert [describe(path).variant("unet", half) for half in (False, True)] == [None, "fp16"]
    plain.unlink()
    assert [describe(path).variant("unet", half) for half in (False, True)] == ["fp16", "fp16"]


def test_shards_are_weights(model_folder: ModelFolderMaker) -> None:
    path = model_folder()
    whole = path / "unet" / "diffusion_pytorch_model.safetensors"
    whole.rename(path / "unet" / "diffusion_pytorch_model-00001-of-00001.safetensors")
    assert describe(path).variants["unet"] == {""}


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected the folder of a diffusers pipeline, found nothing there"):
        probe(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="found a file"):
        probe(tmp_path / "file")


@pytest.mark.parametrize("given", ["models--acme--unclip", "models--acme--unclip/snapshots", ".", "..", "../.."])
def test_the_cache_of_hugging_face_is_told_apart_from_its_snapshots(given: str, model_folder: ModelFolderMaker, tmp_path: Path) -> None:
    hub = tmp_path / "home" / "huggingface" / "hub"
    cache = hub / "models--acme--unclip"
    commit, older, made = "1f3a" * 10, "00aa" * 10, model_folder()
    for name in (commit, older):
        shutil.copytree(made, cache / "snapshots" / name)
    (cache / "blobs").mkdir()
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    (hub / "models--acme--words" / "snapshots" / "77").mkdir(parents=True)
    folder = hub / given
    if given == "../..":
        with pytest.raises(ModelError, match=r"expected model_index\.json"):  # too far up
            probe(folder)
        return
    with pytest.raises(ModelError, match="Hugging Face's cache; name the snapshot") as found:
        probe(folder)
    assert f"snapshots/{commit} (main)" in str(found.value)
    assert f"snapshots/{older}" in str(found.value)
    assert "words" not in str(found.value)
    assert probe(cache / "snapshots" / commit) == probe(cache / "snapshots" / older)


def test_a_cache_without_a_model_that_can_be_used(tmp_path: Path) -> None:
    cache = tmp_path / "models--acme--words"
    with pytest.raises(ModelError, match="found nothing there"):
        probe(cache)
    (cache / "snapshots").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"no snapshot is one of .*: no snapshot"):
        probe(cache)
    (cache / "snapshots" / "77").mkdir()
    (cache / "snapshots" / "77" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ModelError, match=r"no snapshot is one of .*snapshots/77"):
        probe(cache)


def test_another_kind_of_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found an empty folder"):
        probe(tmp_path)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ModelError, match=r"expected model_index\.json .* found holiday\.jpg"):
        probe(tmp_path)


def test_another_pipeline_class(model_folder: ModelFolderMaker) -> None:
    path = model_folder()
    change(path / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(ModelError, match=r"expected StableUnCLIPImg2ImgPipeline or .* or StableDiffusionXLPipeline, found FluxPipeline"):
        probe(path)


@pytest.mark.parametrize("component", ["unet", "image_normalizer", "tokenizer"])
def test_missing_component(model_folder: ModelFolderMaker, component: str) -> None:
    path = model_folder()
    shutil.rmtree(path / component)
    with pytest.raises(ModelError, match=f"missing {component}$"):
        probe(path)


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("unet/config.json", "expected this file of the model"),
        ("unet/diffusion_pytorch_model.safetensors", "expected weights in diffusion_pytorch_model.safetensors"),
        ("tokenizer/merges.txt", "expected tokenizer.json, or vocab.json and merges.txt"),
    ],
)
def test_missing_file(model_folder: ModelFolderMaker, file: str, match: str) -> None:
    path = model_folder()
    (path / file).unlink()
    with pytest.raises(ModelError, match=match):
        probe(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_configuration_that_is_not_json(model_folder: ModelFolderMaker, text: str) -> None:
    path = model_folder()
    (path / "vae" / "config.json").write_text(text)
    with pytest.raises(ModelError, match="expected a JSON object"):
        probe(path)


@pytest.mark.parametrize("keep", [0, 5, 20, -1])
def test_weights_cut_short(model_folder: ModelFolderMaker, keep: int) -> None:
    path = model_folder()
    file = path / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"vae/diffusion_pytorch_model\.safetensors: expected"):
        probe(path)


def test_a_pointer_of_git_lfs(model_folder: ModelFolderMaker) -> None:
    path = model_folder()
    (path / "vae" / "diffusion_pytorch_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        probe(path)


@pytest.mark.parametrize(
    ("file", "key", "value", "match"),
    [
        ("unet/config.json", "class_embed_type", None, "expected 'projection'"),
        ("unet/config.json", "projection_class_embeddings_input_dim", 1024, r"expected 2048 \(twice"),
        ("unet/config.json", "sample_size", "big", "expected one or two whole numbers, found 'big'"),
        ("image_normalizer/config.json", "embedding_dim", 768, "expected 1024"),
        ("image_encoder/config.json", "projection_dim", 0, "expected a whole number >= 1, found 0"),
        ("text_encoder/config.json", "hidden_size", 768, "expected 1024"),
        ("vae/config.json", "latent_channels", 16, "expected 4"),
        ("vae/config.json", "block_out_channels", None, "expected a list of numbers"),
    ],
)
def test_components_that_do_not_fit(model_folder: ModelFolderMaker, file: str, key: str, value: Any, match: str) -> None:
    path = model_folder()
    change(path / file, **{key: value})
    with pytest.raises(ModelError, match=match):
        probe(path)


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))

"""The command that verifies a model folder."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtevo.errors import ModelError
from rtevo.generate import GeneratorSettings
from rtevo.generate.__main__ import main
from rtevo.generate.check import check
from rtevo.generate.hashes import fingerprint, hash_files
from tests.support.random_model import write_model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers")

ModelFolderMaker = Callable[..., Path]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_a_good_model(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.png"
    assert main(["check", str(tiny), "--steps", "2", "--device", "cpu", "--save", str(picture)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[-1] == "good"
    assert "embeddings of 64 numbers, images of 64 x 64 px" in out
    assert "prediction_type: v_prediction; pictures are nearer to their own embeddings" in out
    assert "too close" not in out
    assert "unet: 11.6 M F16 in diffusion_pytorch_model.safetensors" in out
    assert np.asarray(Image.open(picture)).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [(["none"], "none: expected the folder of a diffusers pipeline, found nothing"), (["--steps", "0"], "[generator] steps: expected")],
)
def test_what_is_wrong_is_said(arguments: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert match in err
    assert "good" not in out


def test_a_network_that_ignores_the_embedding(tiny: Path, tmp_path: Path) -> None:
    import safetensors.torch

    deaf = shutil.copytree(tiny, tmp_path / "deaf")
    weights = safetensors.torch.load_file(deaf / WEIGHTS)
    for name in weights:
        if name.startswith("class_embedding.linear_2"):
            weights[name].zero_()
    safetensors.torch.save_file(weights, deaf / WEIGHTS)
    with pytest.raises(ModelError, match="the network ignores its class_labels"):
        check(GeneratorSettings(steps=2, device="cpu"), deaf)


def test_a_wrong_prediction_type_is_told_apart(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = shutil.copytree(tiny, tmp_path / "wrong")
    config = wrong / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"v_prediction"', '"epsilon"'))
    assert main(["check", str(wrong), "--steps", "4", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert "prediction_type: expected the type of the network's training, found epsilon, but with v_prediction pictures follow" in err
    assert "good" not in out


def test_of_random_weights_no_prediction_type_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "random", "sdxl-turbo", narrow=16, px=64, half=False)
    said: list[str] = []
    check(GeneratorSettings(steps=2, device="cpu", guidance_scale=1.0), tmp_path / "random", said.append)
    assert [line for line in said if "too close to tell which is right" in line]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_published_hashes_in_a_list(model_folder: ModelFolderMaker) -> None:
    path = model_folder()
    (path / "SHA256SUMS").write_text(f"{digest(path / WEIGHTS)} *{WEIGHTS}\n{digest(path / 'model_index.json')}  ./model_index.json\n")
    assert [f.name for f in hash_files(path) if f.published] == ["model_index.json", WEIGHTS]
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=rf"expected the published files, found others: {WEIGHTS} "):
        hash_files(path)


def test_published_hashes_of_a_download(model_folder: ModelFolderMaker) -> None:
    path = model_folder()
    record = path / ".cache" / "huggingface" / "download" / f"{WEIGHTS}.metadata"
    record.parent.mkdir(parents=True)
    record.write_text(f"{'0' * 40}\n{digest(path / WEIGHTS)}\n1.0\n")
    assert [f.name for f in hash_files(path) if f.published] == [WEIGHTS]
    record.write_text(f"{'0' * 40}\n{'1' * 64}\n1.0\n")
    with pytest.raises(ModelError, match="download them again"):
        hash_files(path)


def test_published_hashes_of_the_hubs_cache(model_folder: ModelFolderMaker, tmp_path: Path) -> None:
    path = model_folder()
    blob = tmp_path / "blobs" / digest(path / WEIGHTS)
    blob.parent.mkdir()
    (path / WEIGHTS).rename(blob)
    (path / WEIGHTS).symlink_to(blob)
    assert [f.name for f in hash_files(path) if f.published] == [WEIGHTS]


def test_the_fingerprint_is_of_names_and_contents(model_folder: ModelFolderMaker, tmp_path: Path) -> None:
    path = model_folder()
    first = fingerprint(hash_files(path))
    assert fingerprint(hash_files(Path(shutil.copytree(path, tmp_path / "copy")))) == first
    (path / "vae" / "config.json").rename(path / "vae" / "other.json")
    assert fingerprint(hash_files(path)) != first

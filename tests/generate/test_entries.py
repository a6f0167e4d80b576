"""A model folder runs no code, whatever its files name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rtevo.errors import ModelError
from rtevo.generate import TINY_UNCLIP
from rtevo.generate.folder import describe
from rtevo.generate.loading import load_pipeline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_UNCLIP, tmp_path / "model"))


def change(folder: Path, **entries: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize("name", ["None.py", "pipeline.py", "scheduler/evil.py", "unet/deep/er/evil.PY", "vae/__init__.pyc", "x.so"])
def test_a_folder_with_code_in_it_is_refused(name: str, folder: Path) -> None:
    assert describe(folder).embedding_size > 0
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("raise SystemExit('owned')")
    with pytest.raises(ModelError, match="found code"):
        describe(folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"scheduler": ["evil", "Evil"]},
        {"scheduler": ["os", "DDIMScheduler"]},
        {"scheduler": ["diffusers", "DDIMScheduler", "x"]},
        {"scheduler": ["diffusers", ["DDIMScheduler"]]},
        {"vae": ["diffusers", "UNet2DConditionModel"]},
        {"unet": {"a": 1}},
        {"safety_checker": ["evil", "StableDiffusionSafetyChecker"]},
        {"extra": ["evil", "Evil"]},
        {"_class_name": ["pipeline", "Evil"]},
        {"_class_name": {"a": 1}},
    ],
)
def test_only_known_classes_are_named(entries: dict[str, Any], folder: Path) -> None:
    change(folder, **entries)
    with pytest.raises(ModelError, match=r"model_index\.json"):
        describe(folder)


def test_what_is_not_there_and_other_schedulers_may_be_named(folder: Path) -> None:
    change(folder, safety_checker=[None, None], requires_safety_checker=True, scheduler=["diffusers", "EulerDiscreteScheduler"])
    assert describe(folder).embedding_size > 0


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": 1' + "0" * 400 + "}", "\udcff"])
def test_json_that_is_made_to_do_harm_is_an_error_of_the_model(content: str, folder: Path) -> None:
    (folder / "model_index.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match="expected a JSON object"):
        describe(folder)


def test_every_part_is_loaded_by_its_own_class_and_none_by_a_name_of_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What diffusers does with a name in ``model_index.json`` is never reached."""
    from diffusers.pipelines import pipeline_utils

    monkeypatch.setattr(pipeline_utils, "load_sub_model", lambda *_, **options: pytest.fail(f"loaded by its name: {options['name']}"))
    pipe = load_pipeline(describe(folder), torch.device("cpu"), torch.float32)
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert pipe.tokenizer.model_max_length > 0


def test_a_scheduler_that_this_diffusers_does_not_have_is_an_error_of_the_model(folder: Path) -> None:
    change(folder, scheduler=["diffusers", "NoSuchScheduler"])
    with pytest.raises(ModelError, match="this diffusers has no NoSuchScheduler"):
        load_pipeline(describe(folder), torch.device("cpu"), torch.float32)

"""A participant who prefers a concept: what it likes, how it sees, and what it says to concepts that it does not know."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from rtevo.errors import ConfigError
from rtevo.generate import GeneratorSettings, load
from rtevo.simulate import Simulation, concepts
from rtevo.simulate.concept import EYE, ConceptPreference, see

SINGLE_PRECISION = 1e-5


def disc(colour: str, side: int = 64) -> NDArray[np.uint8]:
    """A large disc of a colour on white."""
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).ellipse((side // 32, side // 32, side - side // 32, side - side // 32), fill=colour)
    return np.asarray(image)


def test_the_eye_is_the_network_that_was_trained() -> None:
    """Four convolutions and a linear layer, held against torch's."""
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    with np.load(EYE) as stored:
        weights = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files if stored[name].dtype.kind == "f"}
    x = torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    for i in range(4):
        x = torch.nn.functional.conv2d(x, weights[f"weight_{i}"], weights[f"bias_{i}"], 2, 1).relu()
    expected = torch.nn.functional.normalize(torch.nn.functional.linear(x.flatten(1), weights["weight_4"], weights["bias_4"]), dim=1)[0]
    np.testing.assert_allclose(see(picture), expected.numpy(), atol=SINGLE_PRECISION)


def test_it_likes_what_looks_like_the_concept() -> None:
    red, blue = ConceptPreference("red circle"), ConceptPreference("blue circle")
    assert red(disc("#f44336")) > 2 > red(disc("#1e88e5"))
    assert blue(disc("#1e88e5")) > 2 > blue(disc("#f44336"))
    large = red(disc("#f44336", 256))
    assert large == pytest.approx(red(disc("#f44336")), abs=0.2)  # the number of pixels does not matter


def test_preferences_are_standardised_and_level_off() -> None:
    rng = np.random.default_rng(2)
    names = rng.choice(concepts(), 40)
    for name in names:
        prefer = ConceptPreference(str(name))
        values = [prefer(rng.integers(0, 256, (64, 64, 3), np.uint8)), prefer(disc("white"))]
        assert max(map(abs, values)) < 3
        assert prefer.settings() == {"kind": "concept", "concept": name, "pictures": [name]}


def test_keywords_are_concepts_too() -> None:
    fruit = ConceptPreference("Fruit")
    assert {"red apple", "banana", "grapes"} <= set(fruit.pictures)
    assert "spider" not in fruit.pictures


@pytest.mark.parametrize(("wanted", "hint"), [("spyder", "spider"), ("aple", "apple"), ("", "got ''"), ("xyzzyx", "--prefers list")])
def test_unknown_concepts_get_names_that_come_close(wanted: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[simulation\] prefers: expected the name or a keyword of an emoji, .*{hint}"):
        ConceptPreference(wanted)


def test_a_simulation_prefers_what_it_is_told() -> None:
    assert Simulation(prefers="spider").preference().settings()["concept"] == "spider"
    with pytest.raises(ConfigError, match="prefers"):
        Simulation(prefers="spyder").preference()


def test_concepts_are_listed_and_mistakes_reported_before_anything_starts(tmp_path: object) -> None:
    listed = subprocess.run([sys.executable, "-m", "rtevo.run", "--prefers", "list"], capture_output=True, text=True, check=True)
    assert listed.stdout.split("\n")[:-1] == concepts()
    wrong = subprocess.run([sys.executable, "-m", "rtevo.run", "--prefers", "spyder"], capture_output=True, text=True, cwd=str(tmp_path))
    assert wrong.returncode == 2
    assert "spider" in wrong.stderr


def test_the_package_of_the_participant_needs_no_torch() -> None:
    code = "import sys; from rtevo.simulate.concept import ConceptPreference as C; C('spider'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_pictures_of_a_concept_are_liked_more_than_random_ones(tmp_path: object) -> None:
    """The built-in model's picture of a spider's embedding, against pictures of random latents."""
    from rtevo.generate import TINY_LATENT_SPACE
    from rtevo.latent import LatentSpace

    prefer, space = ConceptPreference("red circle"), LatentSpace.load(TINY_LATENT_SPACE).first(16)
    with load(GeneratorSettings(steps=4, device="cpu")) as generator:
        with torch.inference_mode():
            wanted = generator._encode(disc("#f44336"))  # type: ignore[attr-defined]
        random = space.to_embedding(np.random.default_rng(0).standard_normal((6, 16)))
        first, *others = [prefer(p.pixels) for p in generator.paint(np.concatenate([wanted[None], random]), np.zeros(7, np.uint64))]
    assert first > max(others)
    assert first > 1.5

"""What a decoder's folder promises of its maps is what they keep on new responses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rtevo.decode import write_decoder
from rtevo.decode.categories import categories_of
from rtevo.decode.events import Event, predicted
from rtevo.decode.promise import map_quality
from rtevo.decode.selection import Chosen, select_maps
from rtevo.errors import DecoderError
from rtevo.evolve.__main__ import main

TR_S, VOXELS, KINDS = 2.0, 60, "abc"
SHAPE = (5, 4, 3)


def fitted(seed: int, effect: float, blocks: str = "abcbcacababcacb") -> tuple[Chosen, np.ndarray]:
    """Maps of a run with known responses; and each kind's response over the voxels."""
    rng = np.random.default_rng(seed)
    events = [Event(8.0 + 20.0 * k, 10.0, kind, {}) for k, kind in enumerate(blocks)]
    times = (np.arange(int((events[-1].onset_s + 30) / TR_S)) + 0.5) * TR_S
    patterns = effect * rng.standard_normal((3, VOXELS))
    volumes = rng.standard_normal((len(times), VOXELS))
    for event in events:
        volumes += np.outer(predicted(times, [event], [1.0]), patterns[KINDS.index(event.trial_type)])
    told = categories_of([events], times, np.zeros(len(times), int))
    return select_maps([volumes], *told, counts=(0,), penalties=(0.1,)), patterns


def write(folder: Path, chosen: Chosen) -> Path:
    own = {kind: {"unit": float(unit), "category": kind} for kind, unit in zip(KINDS, chosen.units, strict=True)}
    for kind, weights in zip(KINDS, chosen.weights, strict=True):
        arrays = (np.ones(SHAPE), np.ones(SHAPE), weights.reshape(SHAPE), np.eye(4), {"performance": chosen.as_dict()}, np.ones(SHAPE))
        write_decoder(folder, kind, *arrays, own)
    return folder


@pytest.mark.parametrize("objective", ["a", "a - 0.5 * b"])
def test_the_interval_holds_what_new_blocks_without_noise_show(tmp_path: Path, objective: str) -> None:
    held = []
    for seed in range(8):
        chosen, patterns = fitted(seed, 0.25)
        found = map_quality(write(tmp_path / str(seed), chosen), objective)
        weights = np.array([1.0, 0.0, 0.0]) if objective == "a" else np.array([1.0, -0.5, 0.0])
        map_of = (chosen.weights / chosen.units[:, np.newaxis]).T @ weights
        true = np.corrcoef(patterns @ map_of, weights)[0, 1]
        assert found.blocks == 15
        assert not found.weak
        held.append(found.low - 0.02 < true)  # noise of the blocks makes what is promised less, not more
    assert sum(held) >= 7


def test_a_single_maps_pairs_are_read_and_one_map_needs_no_name(tmp_path: Path) -> None:
    values = np.array([1.0, -1, 1, -1, 1, -1])
    decisions = np.array([2.0, -1, 1, 0.5, 3, -2])
    performance = {
        "value": 1.0,
        "decisions": [list(pair) for pair in zip(values, decisions, strict=True)],
        "labels": [0, 1] * 3,
        "weak": True,
    }
    arrays = (np.ones(SHAPE), np.ones(SHAPE), np.random.default_rng(0).standard_normal(SHAPE), np.eye(4))
    write_decoder(tmp_path, "face", *arrays, {"performance": performance})
    found = map_quality(tmp_path)
    assert found.r == pytest.approx(np.corrcoef(values, decisions)[0, 1])
    assert found.low < found.r < found.high
    assert str(found).startswith("r = 0.84 (WEAK")
    assert map_quality(tmp_path, "-face").r == pytest.approx(found.r)


def test_what_a_folder_does_not_say_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen, _ = fitted(0, 0.25)
    folder = write(tmp_path / "maps", chosen)
    for objective, words in (("d", "unknown map 'd': expected one of a, b, c"), ("rank(a)", "weighted sum"), ("", "found a, b, c")):
        with pytest.raises(DecoderError, match=words):
            map_quality(folder, objective)
    stored = json.loads((folder / "decoder.json").read_text())
    del stored["settings"]["performance"]
    (folder / "decoder.json").write_text(json.dumps(stored))
    with pytest.raises(DecoderError, match="expected the map's results on held-out blocks"):
        map_quality(folder, "a")
    with pytest.raises(DecoderError, match="no such folder"):
        map_quality(tmp_path / "nowhere")
    assert main(["plan", "--minutes", "2", "--cnr", "1", "--decoder", str(folder), "--map", "a", "--jobs", "0"]) == 2
    assert "held-out blocks" in " ".join(capsys.readouterr().err.split())


def test_the_plan_takes_the_quality_from_the_folder_and_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "maps", fitted(0, 0.25)[0])
    words = ["plan", "--minutes", "2", "--cnr", "1", "--size", "4", "--seeds", "1", "--jobs", "0", "--objectives", "cosine"]
    assert main([*words, "--decoder", str(folder), "--map", "a - b"]) == 0
    assert f"a map of {map_quality(folder, 'a - b')}" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--quality", "1.5"]) == 2
    assert "--quality: expected > 0 and at most 1" in capsys.readouterr().err
    assert main([*words, "--map", "a"]) == 2
    assert "--map: expected --decoder" in capsys.readouterr().err

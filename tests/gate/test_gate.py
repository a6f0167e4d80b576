"""What the gate lets through: nothing that a filter has not judged in time."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtevo.errors import ConfigError, DataError
from rtevo.gate import Apart, Finding, Gate, Verdict, check_gate, make_gate, marked_picture
from rtevo.latent import Avoid, LatentSpace
from rtevo.records import VERDICT_BYTES
from tests.support import filters

SPACE = LatentSpace.random(6, 12, seed=1)
EMBEDDING = np.ones(12, np.float32)
PATIENCE_S = 30.0  # of tests in which nothing is late: the machine may be busy


def pictures(n: int, seed: int = 0) -> list[Any]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, 16, 24, 3), np.uint8))


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Apart]:
    """Return a function that makes the test's filter, which fails in a given way."""

    def make(way: str = "", deadline_s: float = PATIENCE_S, threshold: float | None = None) -> Apart:
        (tmp_path / "way").write_text(way)
        monkeypatch.setenv("RTEVO_TEST_FILTER", str(tmp_path / "way"))
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        return Apart("marked", "tests.support.filters:Filter", (), threshold, deadline_s)

    return make


def test_a_filter_in_its_own_process_refuses_what_is_marked_and_says_why(apart: Callable[..., Apart]) -> None:
    with apart() as own:
        shown = pictures(40)
        found = [own.judge(picture, EMBEDDING) for picture in shown]
        assert [f.refused for f in found] == [filters.is_marked(picture) for picture in shown]
        assert {f.version for f in found} == {"1.2"}
        assert next(f.reason for f in found if f.refused) == "it is marked (1, limit 0.5)"
        assert 0 < sum(f.refused for f in found) < 40
    with apart(threshold=0.2) as strict:
        assert all(strict.judge(picture, EMBEDDING).refused for picture in shown[:5])


@pytest.mark.parametrize("way", ["die", "raise", "nan", "hang"])
def test_a_filter_that_fails_refuses_and_is_started_again(way: str, apart: Callable[..., Apart], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = next(p for p in pictures(200) if filters.hashlib.sha256(bytes(p)).digest()[1] % 5 == 0 and not filters.is_marked(p))
    right = next(p for p in pictures(200) if filters.hashlib.sha256(bytes(p)).digest()[1] % 5 and not filters.is_marked(p))
    with apart(way) as own:
        before = own.pid
        if way == "hang":
            own._deadline_s = 0.05
        failed = own.judge(wrong, EMBEDDING)
        own._deadline_s = PATIENCE_S
        assert failed.refused
        assert math.isnan(failed.value)
        assert "is not shown" in failed.reason
        assert not own.judge(right, EMBEDDING).refused  # by the next one, which has got ready
        assert own.pid != before


def test_a_filter_that_takes_long_to_load_is_left_to_load(apart: Callable[..., Apart], monkeypatch: pytest.MonkeyPatch) -> None:
    right = next(p for p in pictures(200) if filters.hashlib.sha256(bytes(p)).digest()[1] % 5 and not filters.is_marked(p))
    with apart() as own:
        os.kill(own.pid or 0, signal.SIGKILL)
        own._deadline_s = 0.0
        assert own.judge(right, EMBEDDING).refused  # it has ended, and is started again
        pid = own.pid
        for _ in range(3):
            assert own.judge(right, EMBEDDING).refused  # not ready yet
            assert own.pid == pid
        own._deadline_s = PATIENCE_S
        assert not own.judge(right, EMBEDDING).refused
        assert own.pid == pid


def test_a_filter_that_is_killed_refuses(apart: Callable[..., Apart]) -> None:
    right = next(p for p in pictures(20) if not filters.is_marked(p))
    with apart() as own:
        assert not own.judge(right, EMBEDDING).refused
        os.kill(own.pid or 0, signal.SIGKILL)
        assert own.judge(right, EMBEDDING).refused
        assert not own.judge(right, EMBEDDING).refused


def test_what_a_filter_prints_is_no_answer(apart: Callable[..., Apart]) -> None:
    with apart("chatter") as own:
        for picture in pictures(10):
            assert own.judge(picture, EMBEDDING).refused == filters.is_marked(picture)


def test_a_filter_that_cannot_be_loaded_is_named_before_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    for target, why in (("tests.support.filters:Broken", "OSError: no such model"), ("nowhere:Filter", "No module named 'nowhere'")):
        with pytest.raises(DataError, match=rf"filter 'own' cannot be used: .*{why}"), Apart("own", target, (), None, 1.0):
            pass


def test_filters_are_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filters.install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    gate = make_gate(None, "", ["marked-at-random=0.1"], 1.0)
    assert [each.name for each in gate.filters] == ["marked", "marked-at-random"]
    with pytest.raises(ConfigError, match=r"filters: expected a filter that is installed here \(.*marked-at-random.*\), got 'other'"):
        make_gate(None, "", ["other"], 1.0)
    with pytest.raises(ConfigError, match="expected NAME or NAME=THRESHOLD, got 'broken=x'"):
        make_gate(None, "", ["broken=x"], 1.0)
    with pytest.raises(ConfigError, match="expected NAME or NAME=THRESHOLD, got 'broken=inf'"):
        make_gate(None, "", ["broken=inf"], 1.0)
    with pytest.raises(ConfigError, match="checker: expected the folder of a CLIP safety checker"):
        make_gate(None, str(tmp_path), [], 1.0)


def test_what_was_painted_is_compared_with_what_is_to_be_avoided() -> None:
    near = np.eye(12)[0]
    with make_gate(Avoid(SPACE, [near], 0.3), "", [], 1.0) as gate:
        for cosine, refused in ((0.72, True), (0.68, False), (-1.0, False), (1.0, True)):
            embedding = cosine * near + math.sqrt(1 - cosine**2) * np.eye(12)[1]
            verdict = gate.judge(pictures(1)[0], embedding.astype(np.float32))
            assert verdict.refused == refused
            assert verdict.findings[1].value == pytest.approx(1 - cosine, abs=1e-6)
        assert gate.judge(pictures(1)[0], np.full(12, np.nan, np.float32)).refused  # nobody knows what it shows


def test_every_gate_refuses_the_marked_picture_and_a_check_shows_it() -> None:
    with Gate([]) as gate:
        assert gate.judge(marked_picture(64, 48), EMBEDDING).refused
        almost = marked_picture(64, 48).copy()
        almost[0, 0, 0] ^= 1
        assert not gate.judge(almost, EMBEDDING).refused
        assert [f.name for f in check_gate(gate, 64, 48, EMBEDDING)] == ["marked"]
        gate.filters = ()
        with pytest.raises(DataError, match="the gate passed the marked picture"):
            check_gate(gate, 64, 48, EMBEDDING)


@given(st.lists(st.builds(Finding, st.text(max_size=40), st.text(max_size=40), st.booleans(), reason=st.text(max_size=300)), max_size=30))
def test_a_verdict_fits_into_its_place(findings: list[Finding]) -> None:
    encoded = Verdict(tuple(findings)).encoded()
    assert len(encoded) <= VERDICT_BYTES
    assert all(set(finding) >= {"name", "refused"} for finding in json.loads(encoded))


def test_a_checker_flags_what_the_published_one_blackens(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    from rtevo.generate.checker import Checker

    torch.manual_seed(3)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8)).eval()
    with torch.no_grad():
        for name, size, low in (("concept", 17, 0.55), ("special_care", 3, 0.6)):
            getattr(model, f"{name}_embeds").copy_(torch.randn(size, 8))
            getattr(model, f"{name}_embeds_weights").copy_(low + 0.2 * torch.rand(size))
    model.save_pretrained(tmp_path)
    checker = Checker(str(tmp_path))
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    flags = []
    for picture in [*pictures(20), *(np.full((16, 24, 3), (k * 12, 255 - k * 12, k * 7), np.uint8) for k in range(20))]:
        seen = processor(images=picture, return_tensors="pt").pixel_values
        with torch.no_grad():
            flagged = model(clip_input=seen, images=np.ones((1, 4, 4, 3)))[1][0]
        flags.append(bool(flagged))
        assert (checker(picture) > checker.threshold) == flagged
    assert 0 < sum(flags) < 40


def test_calibrate_shows_what_would_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from rtevo.gate.__main__ import main

    filters.install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "avoid").mkdir()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "avoid" / "one.png")
    text = '[safety]\navoid = "avoid"\navoid_distance = 0.9\nfilters = ["marked-at-random"]\ndeadline_s = 30\n[generator]\nsteps = 1\n'
    (tmp_path / "session.toml").write_text(text)
    assert main(["calibrate", str(tmp_path / "session.toml"), "--images", "12", "--out", str(tmp_path / "gate.html")]) == 0
    printed = capsys.readouterr().out
    refused = int(printed.split(" of 12 pictures would be refused")[0])
    assert "  avoid " in printed
    assert "marked-at-random 1.2: refuses" in printed
    page = (tmp_path / "gate.html").read_text()
    assert f"Refused ({refused})" in page
    assert page.count("<img ") == 12
    assert main(["calibrate", str(tmp_path / "session.toml"), "--images", "0"]) != 0

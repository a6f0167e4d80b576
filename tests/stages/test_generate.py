"""What each device's process paints, when an image is late, and what happens when a backend fails in a session."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rtevo.config import build
from rtevo.errors import ConfigError, ModelError
from rtevo.gate import Finding, Gate, Verdict
from rtevo.session.context import Turns, serve
from rtevo.session.rings import readers_of
from rtevo.shm import RingClosed, RingTimeout
from rtevo.stages.generate import ATTEMPTS, Deadline, _Work, other_seed, settings_of
from rtevo.stages.table import STAGES, stages_of


class FakeRing:
    """Slots in a list; ended once they are read."""

    def __init__(self, slots: list[Any], closed: bool = True) -> None:
        self.slots, self.closed, self.published = slots, closed, len(slots)

    def lag(self, reader: str) -> int:
        return len(self.slots)

    @contextmanager
    def read(self, timeout_s: float | None = None) -> Any:
        if not self.slots:
            raise RingClosed("closed") if self.closed else RingTimeout("nothing")
        yield self.slots[0]
        self.slots.pop(0)


def slots(count: int) -> list[Any]:
    kind = [("generation", "i4"), ("candidate", "i4"), ("scored_ns", "i8"), ("evolved_ns", "i8"), ("embedding", "f4", (3,)), ("seed", "u8")]
    made = np.zeros(count, kind)
    made["candidate"] = made["seed"] = np.arange(count)
    return list(made)


def context(devices: int, started_ns: int = 0, lock_step: bool = False) -> Any:
    config = build({"generator": {"devices": ["cpu"] * devices}})
    clock = SimpleNamespace(speed=0.0 if lock_step else 1.0, lock_step=lock_step, ending=False, get=lambda word: started_ns)
    return SimpleNamespace(config=config, plan=SimpleNamespace(devices=devices), clock=clock, stage="generate")


class FakeGenerator:
    def __init__(self) -> None:
        self.requests: list[int] = []

    def paint(self, embeddings: Any, seeds: Any) -> Any:
        self.requests.append(len(seeds))
        blank = {"pixels": np.zeros((2, 2, 3), np.uint8), "embedding": np.zeros(3, np.float32)}
        return iter([SimpleNamespace(index=i, seed=int(s), **blank) for i, s in enumerate(seeds)])


@pytest.mark.parametrize("lock_step", [False, True])
def test_images_are_dealt_in_turn(lock_step: bool) -> None:
    for devices in (1, 2, 3):
        dealt = []
        for own in range(devices):
            work, generator = _Work(context(devices, lock_step=lock_step), FakeRing(slots(7)), own, Gate([])), FakeGenerator()  # type: ignore[arg-type]
            painted = []
            while not work.ended:
                painted += [(int(slot["candidate"]), image.seed) for slot, _, image, _ in work.paint(generator)]
            assert painted == [(k, k) for k in range(own, 7, devices)]
            assert generator.requests == ([1] * len(painted) if lock_step else [len(painted)])  # all that waits is one request
            dealt.append([k for k, _ in painted])
        turns = Turns([FakeRing(list(d), closed=False) for d in dealt], "bridge")  # type: ignore[arg-type]
        seen = []
        for _ in range(7):
            with turns.read(0) as k:
                seen.append(k)
            turns = Turns(turns._rings, "bridge")  # a reader that was started again
        assert seen == list(range(7))
        with pytest.raises(RingTimeout), turns.read(0):
            pass


class Refuses:
    """A gate that refuses the first attempts of some candidates."""

    def __init__(self, attempts: dict[int, int]) -> None:
        self.left, self.judged = dict(attempts), 0

    def judge(self, pixels: Any, embedding: Any) -> Verdict:
        number = self.judged
        self.judged += 1
        candidate = self.order[number]
        refused = self.left.get(candidate, 0) > 0
        self.left[candidate] = self.left.get(candidate, 0) - 1
        self.order.insert(number + 1, candidate) if refused and self.order.count(candidate) < ATTEMPTS else None
        return Verdict((Finding("test", "1", refused),))

    order: list[int]


@pytest.mark.parametrize("lock_step", [False, True])
def test_a_refused_picture_is_painted_once_more_with_other_noise_before_the_next_one(lock_step: bool) -> None:
    gate = Refuses({1: 1, 3: 2})
    gate.order = list(range(5))
    work, painted = _Work(context(1, lock_step=lock_step), FakeRing(slots(5)), 0, gate), []  # type: ignore[arg-type]
    while not work.ended:
        painted += [(int(slot["candidate"]), attempt, image.seed, v.refused) for slot, attempt, image, v in work.paint(FakeGenerator())]
    seeds = {k: other_seed(k, 1) for k in (1, 3)}
    firsts = [(k, 0, k, k in (1, 3)) for k in range(5)]
    assert painted == [*firsts[:2], (1, 1, seeds[1], False), *firsts[2:4], (3, 1, seeds[3], True), firsts[4]]
    assert len({*seeds.values(), 1, 3}) == 4


def test_serve_reads_rings_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    from rtevo.session import context as module

    rings = [FakeRing(["a", "c"]), FakeRing(["b"], closed=False)]
    for i, ring in enumerate(rings):
        ring.name = f"images-{i}"  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "wait_any", lambda rings, timeout_s: rings)
    seen: list[str] = []
    inputs: dict[str, Any] = {"images": Turns(rings, "bridge")}  # type: ignore[arg-type]
    assert serve(inputs, {"images": seen.append}, 0) == []  # the second ring's turn, and it has nothing yet
    assert seen == ["a", "b", "c"]
    rings[1].closed = True
    assert serve(inputs, {"images": seen.append}, 0) == ["images"]
    assert inputs == {}


def test_every_device_has_a_process_and_a_ring() -> None:
    plan: Any = SimpleNamespace(config=build({"generator": {"devices": ["cuda:0", "cuda:1"]}}), devices=2, localizer=False)
    stages = {stage.name: stage for stage in stages_of(plan)}
    assert set(stages) == {stage.name for stage in STAGES if stage.wanted(plan)} | {"generate-1"}
    assert [stages[name].writes for name in ("generate", "generate-1")] == [("images", "refused"), ("images-1", "refused-1")]
    assert stages["bridge"].reads == ("images", "images-1")
    assert readers_of("latents", 2)[:2] == ["generate", "generate-1"]
    assert readers_of("images-1", 2) == readers_of("images")
    for stage in stages.values():
        assert all(stage.name in readers_of(ring, 2) for ring in stage.reads)


def test_when_an_image_is_due() -> None:
    deadline = Deadline(deadline_s=1.0, cadence_s=4.0)
    asked = slots(3)
    assert [deadline.due_ns(slot) / 1e9 for slot in asked] == [1.0, 5.0, 9.0]  # shown one after the other
    asked[0]["scored_ns"] = asked[0]["evolved_ns"] = 10**9
    assert deadline.due_ns(asked[0]) == 2 * 10**9  # asked for by itself


def test_late_images_are_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from rtevo.stages import generate as module

    for started_ns, lock_step, said in ((1, False, True), (0, False, False), (1, True, False)):
        caplog.clear()
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic_ns=lambda: 10 * 10**9))
        ring = FakeRing(slots(2))
        for slot in ring.slots:
            slot["evolved_ns"] = 5 * 10**9
        work = _Work(context(1, started_ns, lock_step), ring, 0, Gate([]))  # type: ignore[arg-type]
        while not work.ended:
            for slot, *_ in work.paint(FakeGenerator()):
                work.notice(slot)
        text = "generate: image 0 of generation 0 came 1.00 s late: fixation is held" if said else ""
        assert caplog.text == "" if not said else text in caplog.text
        assert "image 1" not in caplog.text  # due a cadence later


def test_settings_reach_the_generator() -> None:
    table = {"backend": "eager", "scheduler": "unipc", "batch": 3, "fallback": True, "devices": ["cpu", "cpu"]}
    settings = settings_of(build({"generator": table}).generator, "cpu")
    assert (settings.backend, settings.scheduler, settings.batch, settings.fallback, settings.device) == ("eager", "unipc", 3, True, "cpu")
    for value in ([], ["gpu"], ["cuda:x"]):
        with pytest.raises(ConfigError, match="devices: expected at least one of auto"):
            build({"generator": {"devices": value}})
    with pytest.raises(ConfigError, match="px: expected 0 for the built-in model, got 512"):
        build({"generator": {"px": 512}})
    with pytest.raises(ConfigError, match=r"tiny_vae: expected an existing folder, got '/nowhere'"):
        build({"generator": {"tiny_vae": "/nowhere"}})


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers")
def test_a_backend_that_fails_gives_way_only_where_the_session_allows_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from rtevo.generate import GeneratorSettings, load
    from tests.support.random_model import write_model

    write_model(tmp_path / "model", "large", narrow=16, px=64, half=False)
    embeddings, seeds = np.random.default_rng(0).standard_normal((3, 64)), [0, 1, 2]
    settings: dict[str, Any] = {"model_path": tmp_path / "model", "steps": 1, "scheduler": "ddim", "device": "cpu", "backend": "compiled"}
    with load(GeneratorSettings(**settings)) as generator:
        wanted = [p.pixels for p in generator.paint(embeddings, seeds)]
        stream = generator.paint(embeddings, seeds)
        next(stream)
        with torch.no_grad():
            generator._pipe.vae.decoder.conv_out.bias.fill_(float("nan"))  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match="expected finite numbers"):
            next(stream)
    with load(GeneratorSettings(**settings, fallback=True)) as generator:
        stream = generator.paint(embeddings, seeds)
        found = [next(stream)]
        with torch.no_grad():
            generator._generator._pipe.vae.decoder.conv_out.bias.fill_(float("nan"))  # type: ignore[attr-defined]
        found += stream
        assert generator.description.startswith("eager, cpu (1 threads), float32")
        assert "compiled failed, continuing with eager in single precision, which is slower: image: expected finite numbers" in caplog.text
        assert [p.index for p in found] == [0, 1, 2]
        for one, other in zip(wanted, found, strict=True):
            assert np.abs(one.astype(int) - other.pixels).max() <= 2
        with torch.no_grad():
            generator._generator._pipe.vae.decoder.conv_out.bias.fill_(float("nan"))  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match="expected finite numbers"):  # nothing is left to fall back to
            generator.warm_up()

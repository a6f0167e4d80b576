"""Checks of the image model, its latent space, the course, and the speed of painting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.preflight.findings import Finding, Known, megabytes
from rtevo.session import checks
from rtevo.session.safety import avoid_of, gate_of

__all__ = ["course", "gate", "model", "painting"]

IMAGES = 5  # painted for the test
NEAR = 0.8  # of the available time
SPARE_BYTES = 1 << 30  # of a GPU's memory


def model(known: Known) -> Iterator[Finding]:
    """Check the model's files."""
    from rtevo import generate
    from rtevo.generate.check import check_files

    settings = known.config.generator
    path = Path(settings.unclip_model_path) if settings.unclip_model_path else None
    known.embedding_size, known.image_size = generate.probe(path, settings.px)
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        known.tell(f"model: {line}")

    _, mark = check_files(path or generate.TINY_UNCLIP, tell)
    height, width = known.image_size
    what = f"{path or 'built-in'}: embeddings of {known.embedding_size}, images of {width} x {height} px, fingerprint {mark[:16]}"
    if path is None and known.config.acquisition.source == "watch":
        yield Finding("model", "warn", f"{what}; it paints emoji only", "name a model in [generator] unclip_model_path (docs/generator.md)")
    elif path is not None and "no published hashes" in lines[-1]:
        to_do = "put SHA256SUMS beside the model: every check then compares the files"
        yield Finding("model", "warn", f"{what}; no published checksums to compare with", to_do)
    else:
        yield Finding("model", "pass", what)


def course(known: Known) -> Iterator[Finding]:
    """Check latent space, condition and strategy; a blinded session's condition is not shown."""
    from rtevo.session import course

    assert known.embedding_size is not None
    known.space = checks.check_space(known.config, known.embedding_size)
    course.check(known.config, known.space, avoid_of(known.config, known.space))
    e, images = known.config.evolution, course.course_settings(known.config).images
    what = (
        f"condition {known.config.session.condition}, {e.strategy}, {e.schedule}; {images} images, at most {known.session_s / 60:.1f} min"
    )
    yield Finding("evolution", "pass", what, "", {"images": images, "longest_s": round(known.session_s, 1)})


def gate(known: Known) -> Iterator[Finding]:
    """Start every filter, check that it refuses the marked picture, and measure the time for a picture."""
    from rtevo.gate import check_gate

    assert known.image_size is not None
    assert known.space is not None
    config = known.config
    with gate_of(config, avoid_of(config, known.space), config.generator.devices[0]) as gate:
        found = check_gate(gate, *known.image_size, known.space.to_embedding(np.zeros(known.space.latent_size, np.float32)))
        ms = sum(finding.ms for finding in found)
        what = f"{gate.description}: refused the marked picture in {ms:.0f} ms; approval: {config.safety.approval}"
    figures: dict[str, float | None] = {"ms": round(ms, 3)}
    if len(found) > 1 or config.safety.approval != "none" or config.acquisition.source != "watch":
        yield Finding("gate", "pass", what, "", figures)
    else:
        to_do = "set [safety] avoid, checker, filters or approval (docs/safety.md)"
        yield Finding("gate", "warn", f"{what}; no other filter and no person sees the pictures first", to_do, figures)


def painting(known: Known) -> Iterator[Finding]:
    """Paint on each of the session's devices, as fast as possible."""
    from rtevo.generate.check import try_out
    from rtevo.stages.generate import settings_of

    config = known.config.generator
    several = len(config.devices) > 1
    for device in dict.fromkeys(config.devices):
        name = f" on {device}" if several else ""
        trial = try_out(settings_of(config, device), IMAGES, lambda line: known.tell(f"painting: {line}"))
        yield pace(known, trial, f"painting{name}")
        if trial.memory is not None:
            yield room(*trial.memory, f"GPU memory{name}")


def pace(known: Known, trial: Any, name: str) -> Finding:
    """Compare the speed of painting with the session's cadence; every device paints its share of the images."""
    first_s, last_s = trial.times_s[0], trial.times_s[-1]
    each_s = (last_s - first_s) / (len(trial.times_s) - 1)
    budget_s = known.cadence_s * len(known.config.generator.devices)
    speed = known.config.session.speed
    deadline_s = (known.config.generator.deadline_s / speed if speed else 0.0) or known.cadence_s
    what = f"{trial.description}: an image every {each_s:.2f} s, the first after {first_s:.2f} s"
    what += f"; one is due every {budget_s:.2f} s" if speed else "; time waits for them (speed max)"
    figures: dict[str, float | None] = {
        "first_s": round(first_s, 4),
        "each_s": round(each_s, 4),
        "due_every_s": budget_s if speed else None,
        "load_s": round(trial.load_s, 2),
    }
    to_do = "fewer [generator] steps or px, a faster backend or one more device: python -m bench.tune finds what keeps the cadence"
    if each_s > budget_s:
        return Finding(name, "fail", what, f"{to_do}; or a longer [presentation] image_s or washout_s", figures)
    if each_s > NEAR * budget_s or first_s > deadline_s:
        return Finding(name, "warn", f"{what}: almost no time to spare", to_do, figures)
    return Finding(name, "pass", what, "", figures)


def room(free: int, total: int, name: str) -> Finding:
    """Judge the free memory of a GPU that holds the model."""
    what = f"{megabytes(free)} of {megabytes(total)} free beside the model"
    figures: dict[str, float | None] = {"free_bytes": free, "total_bytes": total}
    if free < SPARE_BYTES:
        to_do = "end other programs on the GPU (nvidia-smi), or set a smaller [generator] px or batch"
        return Finding(name, "fail" if free < SPARE_BYTES // 8 else "warn", what, to_do, figures)
    return Finding(name, "pass", what, "", figures)

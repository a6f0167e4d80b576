"""Comparison of a recorded session with its recomputation: figures, a table, a picture."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo import __version__
from rtevo.past.evolution import Past
from rtevo.record import LatentRecord, RecordedSession, frame, image_path, write_table

__all__ = ["compare"]

Key = tuple[int, int]
_COLUMNS = {
    **dict.fromkeys(("generation", "candidate"), "int64"),
    **dict.fromkeys(("score_recorded", "score", "score_se_recorded", "score_se", "fitness_recorded", "fitness"), "float64"),
    **dict.fromkeys(("selected_recorded", "selected"), "int64"),
    "asked_cosine": "float64",
}

INK, ACCENT, SECOND = "#1b1f24", "#0b6e75", "#c2571a"


def _rows(session: RecordedSession) -> dict[Key, dict[str, float]]:
    """Return a table of the candidates, NaN: unknown; probes are left out."""
    shown = [row for row in session.rows if row.get("probe") is None]
    names = ("score", "score_se", "fitness")
    return {(row["generation"], row["candidate"]): {name: float(row.get(name, math.nan)) for name in names} for row in shown}


def _selected(rows: dict[Key, dict[str, float]]) -> set[Key]:
    """Return the better half of each generation: the candidates with fitness above its median."""
    chosen: set[Key] = set()
    for generation in {g for g, _ in rows}:
        own = {key: row["fitness"] for key, row in rows.items() if key[0] == generation and not math.isnan(row["fitness"])}
        if own:
            chosen |= {key for key, value in own.items() if value > np.median(list(own.values()))}
    return chosen


def compare(session: RecordedSession, again: RecordedSession, past: Past, changed: list[str]) -> dict[str, Any]:
    from scipy.stats import spearmanr

    out, into = session.out, again.out
    before, now = _rows(session), _rows(again)
    keys = sorted(before)
    pairs = np.array([[before[key]["score"], now[key]["score"]] for key in keys]).reshape(-1, 2)
    both = np.isfinite(pairs).all(axis=1)
    chosen = _selected(before), _selected(now)
    asked = {(r.generation, r.candidate): r.latent for r in past.asked}
    shown = {(r.generation, r.candidate): r.latent for r in session.records(LatentRecord)}
    alike = {key: _cosine(asked[key], shown[key]) for key in shown if key in asked and key in before}
    enough = both.sum() >= 3 and np.ptp(pairs[both], axis=0).min() > 0
    result: dict[str, Any] = {
        "session": str(out),
        "rtevo": {"recorded": session.versions, "now": __version__},
        "changed": changed,
        "images": len(keys),
        "scored": int(both.sum()),
        "scores_identical": bool(np.array_equal(pairs[:, 0], pairs[:, 1], equal_nan=True)),
        "latents_identical": all(np.array_equal(asked[key], shown[key]) for key in shown if key in asked),
        "rank_correlation": round(float(spearmanr(*pairs[both].T).statistic), 4) if enough else None,
        "correlation": round(float(np.corrcoef(pairs[both].T)[0, 1]), 4) if enough else None,
        "selected": {"recorded": len(chosen[0]), "now": len(chosen[1]), "both": len(chosen[0] & chosen[1])},
        "fittest": {name: _fittest(rows) for name, rows in (("recorded", before), ("now", now))},
    }
    np.savez_compressed(
        into / "rerun.npz",
        generation=np.array([g for g, _ in asked], np.int32),
        candidate=np.array([c for _, c in asked], np.int32),
        latents=np.array(list(asked.values()), np.float32),
    )
    (into / "rerun.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _write_table(into / "rerun.tsv", keys, before, now, chosen, alike)
    _draw(out, result, pairs, keys, chosen, alike, into / "rerun.png")
    for name in ("latent_space.npz", "session.toml"):
        if not (into / name).exists():
            shutil.copyfile(out / name, into / name)
    return result


def _fittest(rows: dict[Key, dict[str, float]]) -> str | None:
    known = {key: row["fitness"] for key, row in rows.items() if not math.isnan(row["fitness"])}
    return "{}/{}".format(*max(known, key=lambda key: known[key])) if known else None


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _write_table(
    path: Path, keys: list[Key], before: dict[Key, Any], now: dict[Key, Any], chosen: tuple[set[Key], set[Key]], alike: dict[Key, float]
) -> None:
    both = (("_recorded", before, chosen[0]), ("", now, chosen[1]))
    rows = [
        {
            "generation": key[0],
            "candidate": key[1],
            **{f"{name}{end}": rows[key][name] for name in ("score", "score_se", "fitness") for end, rows, _ in both},
            **{f"selected{end}": int(key in own) for end, _, own in both},
            "asked_cosine": round(alike.get(key, math.nan), 6),
        }
        for key in keys
    ]
    write_table(frame(rows, _COLUMNS), path)


def _draw(
    out: Path,
    result: dict[str, Any],
    pairs: NDArray[Any],
    keys: list[Key],
    chosen: tuple[set[Key], set[Key]],
    alike: dict[Key, float],
    path: Path,
) -> None:
    """Draw recorded against new scores; the latents that evolution would have requested; the fittest images of both."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(12, 4.6), dpi=110, facecolor="white", layout="constrained")
    figure.suptitle(f"{out.name} recomputed: " + ("; ".join(result["changed"]) or "same settings"), fontsize=9, x=0.01, ha="left")
    scatter, course, fittest = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 1])
    kind = np.array([(key in chosen[0]) + 2 * (key in chosen[1]) for key in keys])
    for value, color, label in (
        (3, ACCENT, "selected then and now"),
        (1, SECOND, "only then"),
        (2, "#5b4b8a", "only now"),
        (0, "#c8ced4", "never"),
    ):
        scatter.plot(*pairs[kind == value].T, "o", color=color, label=f"{label} ({int((kind == value).sum())})", markersize=5)
    rank = result["rank_correlation"]
    scatter.set(xlabel="score as recorded", ylabel="score now", title=f"Scores (rank correlation {'-' if rank is None else f'{rank:.3f}'})")
    scatter.legend(fontsize=7, frameon=False)
    course.plot([key[0] for key in alike], list(alike.values()), "o", color=ACCENT, alpha=0.5, markersize=4)
    course.set(
        xlabel="generation",
        ylabel="cosine of recorded and new latents",
        ylim=(-1.05, 1.05),
        title="Latents that evolution would have requested",
    )
    course.xaxis.get_major_locator().set_params(integer=True)
    fittest.set_axis_off()
    fittest.set_title("Fittest: as recorded | now")
    for place, name in enumerate(("recorded", "now")):
        best = result["fittest"][name]
        if best and (picture := image_path(out, *map(int, best.split("/")))).exists():
            inner = fittest.inset_axes((0.5 * place + 0.02, 0.25, 0.46, 0.6))
            inner.imshow(Image.open(picture))
            inner.set(xticks=[], yticks=[], xlabel=best)
    figure.savefig(path)

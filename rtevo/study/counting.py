"""Decision whether a run counts: its figures against the rules that the study file fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtevo.decode.folder import Decoder, maps_in
from rtevo.decode.promise import map_quality
from rtevo.errors import DecoderError
from rtevo.study.file import Exclusion, Fit

__all__ = ["excluded", "figures_of", "fit_figures", "fit_refused"]

Figures = dict[str, float | None]
MOST = {  # words for each rule in a sentence
    "framewise_displacement_mm": "mean framewise displacement {:.3g} mm",
    "spikes": "share of spikes {:.3g}",
    "lost": "share of volumes lost {:.3g}",
}


def figures_of(summary: Mapping[str, Any]) -> Figures:
    """Return the figures of a run to which the rules apply, from its summary.

    Parameters
    ----------
    summary : mapping
        As in ``summary.json``.
    """
    volumes, quality = summary["volumes"], summary["quality"]
    gone, all_ = volumes["lost"] + volumes["unaligned"], volumes["received"] + volumes["lost"]
    return {
        "framewise_displacement_mm": quality["framewise_displacement_mm"]["mean"],
        "spikes": round(quality["spikes"] / volumes["aligned"], 6) if volumes["aligned"] else None,
        "lost": round(gone / all_, 6) if all_ else None,
        "reliability": quality["score_reliability"],
    }


def excluded(rule: Exclusion, figures: Figures, kind: str) -> str:
    """Return why a run does not count; empty if it counts. An unknown figure excludes if there is a rule for it.

    Parameters
    ----------
    rule : Exclusion
    figures : dict of str to float or None
    kind : str
    """
    reasons = []
    for name, words in MOST.items():
        most, found = getattr(rule, name), figures[name]
        if most and (found is None or found > most):
            known = words.format(found) if found is not None else f"{name} is not known"
            reasons.append(f"{known}, the study file permits at most {most:g}")
    if kind == "loop" and rule.reliability:
        found = figures["reliability"]
        if found is None or found < rule.reliability:
            known = f"reliability {found:.3g}" if found is not None else "reliability is not known"
            reasons.append(f"{known}, the study file requires {rule.reliability:g}")
    return "; ".join(reasons)


def fit_figures(folder: Path, objective: str = "") -> Figures:
    """Return a decoder's figures on held-out blocks; None: not known.

    Parameters
    ----------
    folder : Path
    objective : str
        The loops' objective; empty: the only map.
    """
    found: Figures = {"auc": None, "reliability": None}
    try:
        names = maps_in(folder)
        stored = Decoder.load(folder, sorted(names)[0]).settings.get("performance")
        value = stored.get("value") if isinstance(stored, dict) else None
        found["auc"] = float(value) if isinstance(value, (int, float)) else None
        found["reliability"] = round(map_quality(folder, objective).r, 6)
    except (DecoderError, OSError, IndexError):
        pass
    return found


def fit_refused(rule: Fit, figures: Figures) -> str:
    """Return why a fit has failed; empty if it passed."""
    reasons = []
    for name, least in (("auc", rule.auc), ("reliability", rule.reliability)):
        found = figures[name]
        if least and (found is None or found < least):
            reasons.append(f"{name} {'is not known' if found is None else f'{found:.3g}'}, the study file requires {least:g}")
    return "; ".join(reasons)

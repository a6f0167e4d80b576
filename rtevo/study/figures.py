"""The figures of a group report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rtevo.report.figures import ACCENT, CONTROL, INK, MUTED, PALE, SECOND

if TYPE_CHECKING:
    from rtevo.study.group import Comparison, Group

__all__ = ["colour_of", "courses", "effects", "participants"]

_FEWEST = 0.5  # smallest share of an arm's participants for its mean to be drawn: a mean of fewer would show who is missing


def colour_of(group: Group, arm: str) -> str:
    """Return an arm's colour: the treated arm has the reports' own."""
    others = sorted(set(group.arms.values()) - {group.analysis.treated})
    return ACCENT if arm not in others else (SECOND, *CONTROL)[others.index(arm) % (1 + len(CONTROL))]


def courses(ax: Any, group: Group) -> None:
    """Draw each participant's mean by generation, and each arm's mean with its standard error over participants."""
    for who, own in group.trajectories().groupby("who", sort=True):
        colour = colour_of(group, group.arms.get(str(who), group.analysis.treated))
        ax.plot(own["step"], own["mean"], color=colour, alpha=0.25, linewidth=0.9)
    for k, (arm, own) in enumerate(group.arm_trajectories().groupby("who", sort=True)):
        colour = colour_of(group, str(arm))
        own = own[own["n"] >= _FEWEST * own["n"].max()]
        label = f"{arm} (n = {own['n'].max()})" if group.arms else f"all participants (n = {own['n'].max()})"
        ax.errorbar(
            own["step"] + 0.08 * k,
            own["mean"],
            np.nan_to_num(own["se"]),
            fmt="-o",
            color=colour,
            markersize=4.5,
            linewidth=1.8,
            capsize=2.5,
            label=label,
        )
    ax.axhline(0, color="#8b949e", linewidth=0.6)
    steps = int(group.course.images["step"].max()) + 1
    ax.set(xlabel="generation, counted through the runs", ylabel=_level(group), xticks=range(0, steps, max(1, math.ceil(steps / 20))))
    ax.set_title("Scores by generation: participants (thin), mean ± standard error over participants")
    ax.legend(loc="upper left", ncol=3)


def _level(group: Group) -> str:
    return "brain response, " + ("from the first third" if group.course.anchored else "about its run's mean")


def participants(ax: Any, group: Group) -> None:
    """Draw one number a participant, by arm; lines join pairs."""
    people = group.participants.dropna(subset=["summary"])
    names = [group.analysis.treated, *sorted(set(group.arms.values()) - {group.analysis.treated})] if group.arms else ["all"]
    place = {who: float(names.index(group.arms.get(str(who), names[0]))) for who in people.index}
    spread = {who: place[who] + 0.24 * ((k % 7) / 3 - 1) for k, who in enumerate(people.index)}
    if group.arms and (people.groupby("block").size() <= 2).all():
        spread = place
        for _, own in people.groupby("block"):
            ax.plot([place[who] for who in own.index], own["summary"], color=PALE, linewidth=1, zorder=1)
    for who, row in people.iterrows():
        colour = colour_of(group, group.arms.get(str(who), group.analysis.treated))
        ax.errorbar(
            spread[who],
            row["summary"],
            np.nan_to_num(row["se"]),
            fmt="o",
            color=colour,
            ecolor=PALE,
            markersize=5,
            elinewidth=1.2,
            zorder=2,
        )
        ax.annotate(str(who), (spread[who], row["summary"]), xytext=(5, 3), textcoords="offset points", fontsize=6.5, color=MUTED)
    for k in range(len(names)):
        own = people["summary"][[place[who] == k for who in people.index]]
        if len(own):
            ax.plot([k - 0.3, k + 0.3], [own.mean()] * 2, color=INK, linewidth=1.8, zorder=3)
    ax.axhline(0, color="#8b949e", linewidth=0.6)
    ax.set(
        xticks=range(len(names)), xticklabels=names, xlim=(-0.6, len(names) - 0.4), ylabel=f"{group.analysis.summary} of the brain response"
    )
    ax.set_title(f"{group.analysis.summary.capitalize()} of each participant ± its standard error; bars: means")


def effects(ax: Any, found: Sequence[Comparison]) -> None:
    """Draw each comparison with its interval, the randomisation test above the mixed model."""
    labels = []
    for k, each in enumerate(found):
        rows = [(each.effect.estimate, each.effect.low, each.effect.high, ACCENT, "o")]
        if each.mixed is not None:
            rows.append((each.mixed.estimate, each.mixed.low, each.mixed.high, MUTED, "s"))
        for row, (middle, low, high, colour, marker) in enumerate(rows):
            y = -(k + 0.3 * row)
            ax.plot(middle, y, marker, color=colour, markersize=6)
            if math.isfinite(low) and math.isfinite(high):
                ax.plot([low, high], [y, y], color=colour, linewidth=1.6)
            elif math.isfinite(middle):
                ax.axhline(y, color=colour, linewidth=1, linestyle=":")  # unbounded
        labels.append(f"{each.treated} − {each.control}")
    ax.axvline(0, color="#8b949e", linewidth=0.8)
    ax.set(
        yticks=[-k - 0.15 for k in range(len(found))],
        yticklabels=labels,
        ylim=(-len(found) + 0.3, 0.5),
        xlabel="difference of the brain response",
    )
    ax.set_title("Effect with its interval: randomisation test (circle; dotted: unbounded), mixed model (square)")

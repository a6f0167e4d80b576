"""Parts of the page about a localizer: pictures by category, the order, the task, and its methods in words."""

# ruff: noqa: E501 - prose

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rtevo.record import image_path
from rtevo.report.figures import ACCENT, INK, WARN, span
from rtevo.report.gather import Row, Session

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["categories", "order", "presentation", "task", "task_in_words"]

MOST_PICTURES = 16  # of a category that are drawn
REFERENCES = {
    "stigliani2015": "Stigliani A, Weiner KS, Grill-Spector K (2015). Temporal processing capacity in high-level visual cortex is domain "
    "specific. J Neurosci 35:12412–12424. doi:10.1523/JNEUROSCI.4822-14.2015",
    "williams1949": "Williams EJ (1949). Experimental designs balanced for the estimation of residual effects of treatments. Aust J Sci Res "
    "2:149–168. doi:10.1071/CH9490149",
}


def categories(session: Session) -> list[tuple[str, str, list[tuple[Any, Row]]]]:
    """Return each category's name, how often it was shown, and the file and first row of each of its pictures."""
    found = []
    for name in sorted({row["trial_type"] for row in session.shown}):
        own = [row for row in session.shown if row["trial_type"] == name]
        first = {row["stim_file"]: row for row in reversed(own)}
        pictures = sorted(first.items())[:MOST_PICTURES]
        blocks = len({row["block"] for row in own})
        text = f"{len(own)} shown in {blocks} blocks" if blocks < len(own) else f"{len(own)} shown"
        found.append((name, text, [(image_path(session.out, row["block"], row["position"]), row) for _, row in pictures]))
    return found


def task(session: Session) -> list[tuple[str, str]]:
    """Return the results of the task: name, value."""
    found, asked = session.summary["localizer"], session.settings["localizer"]
    if asked["task"] == "none":
        return [("task", "none")]
    targets = {
        "one-back": "pictures that were shown twice in a row",
        "detection": "pictures with a red dot",
    }[asked["task"]]
    rate = f" ({found['hits'] / found['targets']:.0%})" if found["targets"] else ""
    time_s = found["response_time_s"]
    return [
        ("task", f"{asked['task']}: {targets}"),
        ("targets shown", f"{found['targets']}"),
        ("answered", f"{found['hits']}{rate}"),
        ("missed", f"{found['misses']}"),
        ("false alarms", f"{found['false_alarms']}"),
        ("time to the answer", "–" if time_s is None else f"{time_s:.2f} s (median)"),
        ("a press counts", f"up to {asked['response_s']:g} s after a target's onset"),
    ]


def task_in_words(session: Session) -> tuple[str, str, str]:
    """The task as a key figure: what, value, remark."""
    found = session.summary["localizer"]
    return "Targets answered", f"{found['hits']} of {found['targets']}", f"{found['false_alarms']} false alarms"


def order(ax: Axes, session: Session) -> None:
    """Draw which category was shown when, and the answers."""
    names = sorted({row["trial_type"] for row in session.shown})
    for row in session.shown:
        ax.barh(names.index(row["trial_type"]), row["duration"] or 0.0, left=row["onset"], height=0.7, color=ACCENT, linewidth=0)
    for response, marker, color, words in (("hit", "^", INK, "target, answered"), ("miss", "v", WARN, "target, missed")):
        own = [row for row in session.shown if row["response"] == response]
        if own:
            places = [names.index(row["trial_type"]) for row in own]
            ax.plot([row["onset"] for row in own], places, marker, color=color, markersize=4, linestyle="", label=words)
    false = [row["onset"] for row in session.shown if row["false_alarms"]]
    if false:
        ax.plot(false, [len(names) - 0.4] * len(false), "|", color=WARN, markersize=8, linestyle="", label="false alarm", clip_on=False)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlim=span(session), ylim=(-0.6, len(names) + 0.3), xlabel="time from the first volume, s")
    ax.set_title("Pictures and answers over time")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(ncol=3, loc="upper right")


def presentation(session: Session) -> tuple[str, list[str]]:
    """Describe design, task and timing in the words of a paper, with the names of what is cited."""
    s, p, found = session.settings["localizer"], session.settings["presentation"], session.summary["localizer"]
    names = ", ".join(found["categories"])
    dropped = found["dropped_frames"]
    if s["design"] == "blocks":
        design = (
            f"Pictures of {len(found['categories'])} categories ({names}) were shown in blocks of {s['block_images']} of one category ({s['image_s']:g} s each, "
            f"{s['blank_s']:g} s of fixation between them), followed by {s['rest_s']:g} s of fixation; {s['repetitions']} blocks of each"
        )
    else:
        design = (
            f"Pictures of {len(found['categories'])} categories ({names}) were shown one by one for {s['image_s']:g} s, each followed by {s['gap_s'][0]:g} to "
            f"{s['gap_s'][1]:g} s of fixation (uniform)"
        )
    asked = {
        "one-back": "Participants pressed a button when a picture was shown twice in a row (one-back, as in [2])",
        "detection": "Participants pressed a button when a picture had a small red dot",
        "none": "Participants had no task",
    }[s["task"]]
    done = ""
    if s["task"] != "none":
        done = f": {found['targets']} targets, {found['hits']} answered within {s['response_s']:g} s, {found['false_alarms']} false alarms"
    error = found["largest_duration_error_ms"]
    exact = "" if error is None else f" Durations differed from these by {error:.1f} ms at most; {dropped} frames were dropped."
    cited = ["williams1949"] + (["stigliani2015"] if s["task"] == "one-back" else [])
    return (
        f"{design}. The order of the categories was drawn from a square balanced for positions and neighbours [1]; no picture was repeated before all of its "
        f"category had been shown. {asked}{done}. A baseline of {p['baseline_s']:g} s came first. Onsets are times of screen flips.{exact}"
    ), [REFERENCES[name] for name in cited]

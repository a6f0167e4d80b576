"""The panels of the page: each draws one thing of a session on the axes that it is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtevo.record import image_path
from rtevo.records import FD_LIMIT_MM, MOTION_COLUMNS, VolumeFlag
from rtevo.report.gallery import Chosen, Named, words
from rtevo.report.gather import Latency, Row, Session, means

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ACCENT",
    "INK",
    "MUTED",
    "STYLE",
    "along",
    "fitness",
    "gallery",
    "latencies",
    "motion",
    "pictures",
    "quality",
    "responses",
    "span",
    "timeline",
]

INK, MUTED, ACCENT, SECOND, WARN, PALE = "#1b1f24", "#57606a", "#0b6e75", "#c2571a", "#b3261e", "#c8ced4"
CONTROL = ("#7a5195", "#8b7a00", "#4a6fa5", "#a05195")
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8b949e",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "font.size": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "rtevo",
}


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [math.nan if (value := row.get(name)) is None else value for row in rows]


def what(session: Session) -> str:
    """Return the kind of fitness in words."""
    return {
        "brain": "brain response",
        "ratings": "rating",
        "physiology": "skin conductance response, µS",
        "sham": "fitness (sham)",
        "yoked": "fitness (yoked)",
        "random": "brain response",
    }.get(session.condition, "fitness")


def pictures(axes: Any, session: Session, generations: Sequence[int]) -> None:
    """Draw pictures, a row per generation, each with its score; the fittest of a generation is framed.

    Parameters
    ----------
    axes : ndarray of Axes (generations, columns)
    session : Session
    generations : sequence of int
    """
    from PIL import Image

    for row, generation in zip(axes, generations, strict=True):
        own = sorted((t for t in session.evolved if int(t["generation"]) == generation), key=lambda t: t["candidate"])
        best = max((t["fitness"] for t in own if t["fitness"] is not None), default=None)
        for ax in row:
            ax.set_axis_off()
        for ax, trial in zip(row, own, strict=False):
            path = image_path(session.out, generation, int(trial["candidate"]))
            if path.exists():
                with Image.open(path) as picture:
                    ax.imshow(np.asarray(picture))
            fittest = best is not None and trial["fitness"] == best
            ax.set_title(label(session, trial), fontsize=7, pad=2, loc="center", color=ACCENT if fittest else INK)
            if fittest:
                ax.set_axis_on()
                ax.set(xticks=[], yticks=[])
                for spine in ax.spines.values():
                    spine.set(visible=True, color=ACCENT, linewidth=2)
        row[0].text(-0.12, 0.5, f"{generation}", transform=row[0].transAxes, ha="right", va="center", fontsize=8, color=INK)


def gallery(axes: Sequence[Axes], out: Path, chosen: Sequence[Chosen]) -> None:
    """Draw preferred images, with what is known of each below it."""
    from PIL import Image

    for ax, each in zip(axes, chosen, strict=True):
        path = image_path(out, *each.key)
        ax.set_axis_off()
        if path.exists():
            with Image.open(path) as picture:
                ax.imshow(np.asarray(picture))
        ax.set_title(f"{each.response:+.2f}  [{each.low:+.2f}, {each.high:+.2f}]", fontsize=8, loc="center", color=ACCENT)
        ax.text(
            0.5, -0.04, "\n".join(words(each)), transform=ax.transAxes, ha="center", va="top", fontsize=7, color=MUTED, parse_math=False
        )


def along(ax: Axes, named: Sequence[Named], title: str) -> None:
    """Draw the cosines of named pictures with the direction, with their intervals."""
    at = np.arange(len(named))[::-1]
    middle = np.array([each.cosine for each in named])
    ends = np.abs(np.array([(each.low, each.high) for each in named]).T - middle)
    ax.errorbar(middle, at, xerr=ends, fmt="o", color=ACCENT, ms=4, lw=1.2)
    ax.axvline(0, color=PALE, lw=1)
    ax.set_yticks(at, labels=[each.name for each in named], parse_math=False)  # they are names of files
    ax.set(xlim=(-1, 1), title=title, xlabel="cosine with the direction, 90% interval")


def label(session: Session, trial: Row) -> str:
    """Return the label of a picture: its score with standard error, or its rating."""
    if trial["onset"] is None:
        return "not shown"
    if session.blinded:
        return ""
    if session.condition == "ratings":
        return "no answer" if trial.get("rating") is None else f"{trial['rating']:g}"
    if trial.get("score") is None:
        return "–"
    return f"{trial['score']:+.2f}" + ("" if trial.get("score_se") is None else f" ± {trial['score_se']:.2f}")


def fitness(ax: Axes, session: Session, controls: Sequence[Session] = ()) -> None:
    """Draw every image's fitness, generations' means with standard errors, controls, and a simulated participant's true response."""
    generations = session.generations
    if session.blinded:
        _nothing(ax, "hidden: the session is blinded", "Fitness by generation")
        return
    name = "score" if session.condition == "random" else "fitness"
    drawn = _course(ax, session.evolved, name, generations, ACCENT, "-o", f"{what(session)} (n = {_known(session.evolved, name)})")
    for k, probe in enumerate(sorted({int(t["probe"]) for t in session.probes})):
        own = [t for t in session.probes if int(t["probe"]) == probe]
        _course(ax, own, "score", generations, MUTED, ("--s", "--P", "--X")[k % 3], f"probe {probe}", 0.1)
    for control, color in zip(controls, CONTROL, strict=False):
        text = f"control: {control.condition}, {control.out.name}"
        column = "score" if control.condition == "random" or _known(control.evolved, "score") else "fitness"
        drawn |= _course(ax, control.evolved, column, control.generations, color, ":^", text, -0.1)
    if _known(session.evolved, "true_response"):
        other = ax.twinx()
        _course(other, session.evolved, "true_response", generations, SECOND, "-.D", "hidden truth", 0.05)
        other.set_ylabel("true response", color=SECOND)
        other.tick_params(axis="y", colors=SECOND)
        other.spines["right"].set_visible(True)
        lines, texts = other.get_legend_handles_labels()
        handles, labels = ax.get_legend_handles_labels()
        ax.legend([*handles, *lines], [*labels, *texts], loc="upper left", ncol=3)
        _headroom(other)
    elif drawn:
        ax.legend(loc="upper left", ncol=3)
    _headroom(ax)
    ax.set(xlabel="generation", ylabel=what(session), xticks=_ticks(generations))
    ax.set_title("Fitness by generation: images, mean ± standard error")


def _headroom(ax: Axes) -> None:
    """Leave room for the legend."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.3 * (high - low))


def _known(rows: Sequence[Row], name: str) -> int:
    return sum(row.get(name) is not None for row in rows)


def _course(
    ax: Any, rows: Sequence[Row], name: str, generations: Sequence[int], color: str, style: str, text: str, offset: float = 0.0
) -> bool:
    """Draw a column by generation; whether there was anything."""
    where, mean, se = means(rows, name, generations)
    if not where:
        return False
    points = [(t["generation"] + offset, t[name]) for t in rows if t.get(name) is not None]
    ax.plot(*zip(*points, strict=True), style[-1], color=color, alpha=0.3, markersize=3, markeredgewidth=0)
    ax.errorbar(np.array(where) + offset, mean, se, fmt=style, color=color, markersize=4.5, linewidth=1.2, capsize=2.5, label=text)
    return True


def _ticks(generations: Sequence[int]) -> list[int]:
    step = max(1, math.ceil(len(generations) / 20))
    return list(generations)[::step]


def _nothing(ax: Axes, text: str, title: str) -> None:
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color=MUTED)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title)


def responses(ax: Axes, session: Session) -> None:
    """Draw the response to every image with its standard error, in order of presentation."""
    title = "Response to each image ± standard error, in order of presentation"
    shown = [t for t in session.trials if t["onset"] is not None and t.get("score") is not None]
    if session.blinded or not shown:
        _nothing(ax, "hidden: the session is blinded" if session.blinded else "no image was scored", title)
        return
    for generation in session.generations[1::2]:
        own = [t["onset"] for t in session.evolved if int(t["generation"]) == generation and t["onset"] is not None]
        if own:
            ax.axvspan(min(own) - 0.5, max(own) + float(session.settings["presentation"]["image_s"]), color="#eef1f4", zorder=0)
    for rows, color, marker, text in (
        ([t for t in shown if t.get("probe") is None], ACCENT, "o", "evolved"),
        ([t for t in shown if t.get("probe") is not None], MUTED, "s", "probe"),
    ):
        if rows:
            se = np.nan_to_num(_column(rows, "score_se"))
            ax.errorbar(
                _column(rows, "onset"), _column(rows, "score"), se, fmt=marker, color=color, ecolor=PALE if marker == "o" else MUTED,
                markersize=4, elinewidth=1.5, label=text,
            )  # fmt: skip
    ax.axhline(0, color="#8b949e", linewidth=0.6)
    known = [t for t in shown if t.get("true_response") is not None]
    if len(known) > 2 and np.std(_column(known, "score")) > 0 and np.std(_column(known, "true_response")) > 0:
        r = float(np.corrcoef(_column(known, "score"), _column(known, "true_response"))[0, 1])
        title += f"; r = {r:.2f} with the hidden true response"
    ax.set(xlabel="time from the first volume, s", ylabel="brain response", xlim=span(session))
    ax.set_title(title)
    if session.probes:
        ax.legend(loc="upper left", ncol=2)


def learnt(axes: Sequence[Axes], session: Session) -> None:
    """Draw the estimates of the response's lag and width over the run, and before it."""
    found = session.learnt
    assert found is not None
    whose = "this participant's, from the decoder" if found.own else "people in general"
    for k, (ax, unit, title) in enumerate(zip(axes, ("lag, s", "width"), ("Lag of the response", "Width of the response"), strict=True)):
        before, sd = found.before[2 * k : 2 * k + 2]
        values, spread = found.values[:, 2 * k], found.values[:, 2 * k + 1]
        ax.axhspan(before - sd, before + sd, color="#eef1f4", zorder=0)
        ax.axhline(before, color=MUTED, linewidth=0.8, linestyle="--", label=f"beforehand: {whose}")
        ax.fill_between(found.times_s, values - spread, values + spread, color=PALE, alpha=0.6, linewidth=0)
        ax.plot(found.times_s, values, color=ACCENT, linewidth=1.2, label="estimate from the images")
        _parts(ax, session)
        ax.set(ylabel=unit, xlim=span(session))
        ax.set_title(f"{title} against the canonical one ± standard deviation: {values[-1]:.2f} ± {spread[-1]:.2f} at the end")
    axes[0].legend(loc="upper left", ncol=2)
    axes[-1].set_xlabel("time from the first volume, s")


def span(session: Session) -> tuple[float, float]:
    """Return the time that the run took, from and to, s."""
    shown = [t["onset"] + (t["duration"] or 0.0) for t in session.trials if t["onset"] is not None]
    return 0.0, max([len(session.motion) * float(session.summary["tr_s"]), *shown, 1.0])


def _parts(ax: Axes, session: Session) -> None:
    """Mark where an interrupted session was resumed."""
    for part in session.summary.get("parts", [])[1:]:
        ax.axvline(part["first_volume"] * float(session.summary["tr_s"]), color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))


def motion(ax: Axes, session: Session) -> None:
    """Draw the six motion parameters."""
    onsets = _column(session.motion, "onset")
    for name, style in zip(MOTION_COLUMNS, ["-", "--", ":"] * 2, strict=True):
        kind, axis = name.split("_")
        scale = 180 / math.pi if kind == "rot" else 1.0
        values = [v * scale for v in _column(session.motion, name)]
        ax.plot(onsets, values, style, color=ACCENT if kind == "trans" else SECOND, linewidth=1, label=f"{kind} {axis}")
    _parts(ax, session)
    low, high = ax.get_ylim()
    ax.set(ylim=(low, high + 0.28 * (high - low)), xlim=span(session))
    ax.legend(ncol=6, loc="upper left", handlelength=1.8, columnspacing=1)
    ax.set_ylabel("mm / deg")
    ax.set_title("Head motion against the run's reference")


def quality(axes: Sequence[Axes], session: Session) -> None:
    """Draw framewise displacement, DVARS and tSNR."""
    onsets, spike_mm = _column(session.motion, "onset"), float(session.settings["decoder"]["spike_mm"])
    panels = (
        ("framewise_displacement", "FD, mm", "Framewise displacement (Power 2012)"),
        ("dvars", "DVARS, %", f"DVARS: change from volume to volume inside {session.mask}"),
        ("tsnr", "tSNR", "Temporal signal-to-noise ratio so far (median inside the mask)"),
    )
    for ax, (name, unit, title) in zip(axes, panels, strict=True):
        values = _column(session.motion, name)
        ax.plot(onsets, values, color=INK, linewidth=1)
        _parts(ax, session)
        ax.set(ylabel=unit, xlim=span(session))
        ax.set_title(title)
        if not np.isfinite(values).any():
            ax.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=ax.transAxes, color=MUTED)
    top = max([FD_LIMIT_MM, *(v for v in _column(session.motion, "framewise_displacement") if math.isfinite(v))])
    axes[0].axhline(FD_LIMIT_MM, color=WARN, linewidth=0.8, linestyle="--")
    if spike_mm < 1.2 * top:
        axes[0].axhline(spike_mm, color=WARN, linewidth=0.8, linestyle=":")
    axes[0].set_ylim(0, 1.15 * top)
    for flag, marker, text in (
        (VolumeFlag.MISSING, "x", "missing"),
        (VolumeFlag.UNALIGNED, "+", "not aligned"),
        (VolumeFlag.SPIKE, "v", "spike"),
    ):
        times = [onset for onset, row in zip(onsets, session.motion, strict=True) if int(row["flags"]) & flag]
        if times:
            axes[0].plot(times, [0.03 * top] * len(times), marker, color=WARN, markersize=5, label=text, clip_on=False)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(loc="upper right", ncol=3)
    axes[-1].set_xlabel("time from the first volume, s")


def latencies(ax: Axes, found: Sequence[Latency]) -> None:
    """Draw each step's distribution (share of cases that were done within a time) and its deadline."""
    colors = (ACCENT, SECOND, "#7a5195", "#8b7a00")
    for latency, color in zip(found, colors, strict=False):
        ms = np.sort(np.maximum(latency.ms, 1e-2))
        ax.step(ms, 100 * np.arange(1, len(ms) + 1) / len(ms), where="post", color=color, linewidth=1.4, label=latency.name)
        if math.isfinite(latency.deadline_ms):
            ax.axvline(latency.deadline_ms, color=color, linewidth=0.9, linestyle="--")
    ax.set(xscale="log", ylim=(0, 104), xlabel="ms (dashed: deadline)", ylabel="% done within")
    low, high = ax.get_xlim()
    ticks = [k * 10**e for e in range(-2, 6) for k in ((1,) if high / low > 1e4 else (1, 2, 5)) if low <= k * 10**e <= high]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_xticks([], minor=True)
    ax.set_title("Latencies against their deadlines")
    if found:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def timeline(ax: Axes, session: Session) -> None:
    """Draw when images were shown, what was missing, and when fixation was held."""
    rows = [t for t in session.trials if t["onset"] is not None]
    for trial in rows:
        color = MUTED if trial.get("probe") is not None else ACCENT
        ax.barh(2, trial["duration"] or 0.0, left=trial["onset"], height=0.6, color=color, linewidth=0)
    ax.plot(session.held_s, [1] * len(session.held_s), "|", color=WARN, markersize=11, markeredgewidth=1.5)
    _parts(ax, session)
    tr_s = float(session.summary["tr_s"])
    lost = [index * tr_s for index in session.flagged(VolumeFlag.MISSING)]
    ax.plot(lost, [0] * len(lost), "|", color=WARN, markersize=11, markeredgewidth=1.5)
    ax.set(xlim=span(session), ylim=(-0.6, 2.6), xlabel="time from the first volume, s")
    ax.set_yticks([2, 1, 0], [f"images ({len(rows)})", f"held, no image ready ({len(session.held_s)})", f"volumes missing ({len(lost)})"])
    ax.set_title("What was shown, and gaps")

"""One page about a finished run: ``python -m rtevo.report OUT``."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtevo.errors import DataError, RtevoError
from rtevo.record import finalise, image_path
from rtevo.records import MOTION_COLUMNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "main"]

MAX_COLUMNS = 12  # candidates of a generation that are shown as pictures
MAX_ROWS = 8  # generations: where there are more, the first, the last and some between
INK, ACCENT, SECOND, WARN = "#1b1f24", "#0b6e75", "#c2571a", "#b3261e"


def _read(path: Path) -> list[dict[str, float | None]]:
    """Read a table of numbers; n/a becomes None."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [{k: None if v in ("n/a", "") else float(v) for k, v in row.items()} for row in rows]


def _column(rows: list[dict[str, float | None]], name: str) -> list[float]:
    return [math.nan if (value := row.get(name)) is None else value for row in rows]


def _chosen(generations: list[int]) -> list[int]:
    if len(generations) <= MAX_ROWS:
        return generations
    step = (len(generations) - 1) / (MAX_ROWS - 1)
    return [generations[round(i * step)] for i in range(MAX_ROWS)]


def _pictures(figure: Any, out: Path, trials: list[dict[str, Any]]) -> None:
    """Draw the pictures, a row per generation, each with its score; the fittest of a generation is framed."""
    generations = _chosen(sorted({int(t["generation"]) for t in trials}))
    if not generations:
        figure.text(0.5, 0.5, "no images", ha="center", va="center")
        return
    most = max(sum(int(t["generation"]) == g for t in trials) for g in generations)
    columns = min(most, MAX_COLUMNS)
    row_height = (5.3 / columns + 0.25) / 8  # a square picture and its title, as a share of the page
    figure.subplots_adjust(left=0.1, right=0.98, top=0.86, bottom=max(0.04, 0.86 - len(generations) * row_height))
    axes = figure.subplots(len(generations), columns, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.3})
    from PIL import Image

    for row, generation in zip(axes, generations, strict=True):
        own = sorted((t for t in trials if int(t["generation"]) == generation), key=lambda t: t["candidate"])
        best = max((t["fitness"] for t in own if t["fitness"] is not None), default=None)
        for ax in row:
            ax.set_axis_off()
        for ax, trial in zip(row, own, strict=False):
            path = image_path(out, generation, int(trial["candidate"]))
            if path.exists():
                ax.imshow(Image.open(path))
            value = trial["rating"] if trial.get("rating") is not None else trial["score"]
            fittest = best is not None and trial["fitness"] == best
            label = "not shown" if trial["onset"] is None else "-" if value is None else f"{value:+.2f}"
            ax.set_title(label, fontsize=7, pad=2, color=ACCENT if fittest else INK, fontweight="bold" if fittest else "normal")
            if fittest:
                ax.set_axis_on()
                ax.set(xticks=[], yticks=[])
                for spine in ax.spines.values():
                    spine.set(visible=True, color=ACCENT, linewidth=2)
        row[0].text(-0.12, 0.5, f"{generation}", transform=row[0].transAxes, ha="right", va="center", fontsize=8, color=INK)


def _fitness(ax: Axes, trials: list[dict[str, Any]], condition: str) -> None:
    """Draw every image's fitness, the generations' means, and a simulated participant's true response."""
    generations = sorted({int(t["generation"]) for t in trials})
    for name, color, offset, label in (
        ("fitness", ACCENT, -0.08, f"fitness ({condition})"),
        ("true_response", SECOND, 0.08, "true response (hidden)"),
    ):
        points = [(t["generation"] + offset, t[name]) for t in trials if t.get(name) is not None]
        if not points:
            continue
        axis: Any = ax if name == "fitness" else ax.twinx()
        axis.plot(*zip(*points, strict=True), "o", color=color, alpha=0.35, markersize=3.5, markeredgewidth=0)
        means = [[v for g, v in points if round(g - offset) == k] for k in generations]
        known = [(k, sum(v) / len(v)) for k, v in zip(generations, means, strict=True) if v]
        axis.plot(*zip(*known, strict=True), "-o", color=color, markersize=5, label=label)
        axis.set_ylabel(label, color=color, fontsize=8)
        axis.tick_params(axis="y", colors=color, labelsize=7)
        axis.spines[["top"]].set_visible(False)
    ax.set_xticks(generations)
    ax.set_xlabel("generation", fontsize=8)
    ax.set_title("Fitness by generation", loc="left", fontsize=9)


def _motion(axes: Sequence[Axes], motion: list[dict[str, float | None]]) -> None:
    onsets = _column(motion, "onset")
    scale = {"trans": 1.0, "rot": 180 / math.pi}
    for name, style in zip(MOTION_COLUMNS, ["-", "--", ":"] * 2, strict=True):
        kind, axis = name.split("_")
        values = [v * scale[kind] for v in _column(motion, name)]
        axes[0].plot(onsets, values, style, color=ACCENT if kind == "trans" else SECOND, linewidth=1, label=f"{kind} {axis}")
    axes[0].set_ylabel("mm / deg", fontsize=8)
    axes[0].legend(fontsize=6, ncol=6, frameon=False, loc="upper left", handlelength=1.8, columnspacing=1)
    axes[0].set_title("Head motion (translation mm, rotation deg)", loc="left", fontsize=9)
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, high + 0.25 * (high - low))
    axes[1].plot(onsets, _column(motion, "framewise_displacement"), color=INK, linewidth=1)
    axes[1].axhline(0.5, color=WARN, linewidth=0.8, linestyle="--")
    missing = [t for t, flags in zip(onsets, _column(motion, "flags"), strict=True) if int(flags) & 1]
    axes[1].plot(missing, [0.0] * len(missing), "x", color=WARN, label="missing volume")
    axes[1].set_ylim(0, max(0.6, *(v for v in [*_column(motion, "framewise_displacement"), 0.0] if not math.isnan(v))) * 1.05)
    axes[1].set_ylabel("FD, mm", fontsize=8)
    axes[1].set_xlabel("time from the first volume, s", fontsize=8)


def _latencies(ax: Axes, latencies: dict[str, dict[str, float]]) -> None:
    """Draw p50, p99 and max of each latency."""
    labels = {
        "file_closed_to_aligned": "file closed\n-> aligned",
        "last_needed_volume_to_score": "last needed volume\n-> score",
        "scores_to_first_image": "scores -> first image\nof next generation",
    }
    drawn = [(label, latencies[name]) for name, label in labels.items() if latencies.get(name, {}).get("n")]
    for i, (_, d) in enumerate(drawn):
        ax.plot([d["p50"], d["max"]], [i, i], "-", color="#c8ced4", linewidth=6, solid_capstyle="round", zorder=1)
        for key, color in (("p50", ACCENT), ("p99", SECOND), ("max", WARN)):
            ax.plot(d[key], i, "o", color=color, markersize=6, label=key if i == 0 else None)
        ax.annotate(
            f"  {d['p50']:.0f} / {d['p99']:.0f} / {d['max']:.0f} ms",
            (d["max"] or 0, i),
            xytext=(6, 0),
            textcoords="offset points",
            fontsize=7,
            va="center",
        )
    ax.set_yticks(range(len(drawn)), [label for label, _ in drawn], fontsize=7)
    ax.set_ylim(len(drawn) - 0.5, -0.5)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.set_xlim(low, high * (high / low) ** 0.35)
    ticks = [k * 10**e for e in range(-1, 6) for k in (1, 2, 5) if low <= k * 10**e <= high]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("ms", fontsize=8)
    if drawn:
        ax.legend(fontsize=7, frameon=False, ncol=3, loc="lower right", bbox_to_anchor=(1, 1))
    ax.set_title("Latencies", loc="left", fontsize=9)


def _cost(end: dict[str, Any]) -> str:
    return f"{end['overhead_p50_ns'] / 1e3:,.0f} / {end['overhead_p99_ns'] / 1e3:,.0f}"


def _rings(part: Any, rings: dict[str, Any]) -> None:
    """List what handing messages over cost: per ring, the time in its own code and how long its readers took to wake up."""
    part.text(
        0.03,
        0.93,
        "Rings: time per message in the ring's own code, by the wall clock (us: median / 99th percentile; the slowest reader's)",
        fontsize=9,
    )
    columns = ["ring", "messages", "KB each", "writer us", "reader us", "wake-up us: mean", "worst", "writer waited", "lost by observers"]
    rows = []
    for name, ring in rings.items():
        readers = [r for r in ring["readers"] if r["messages"]]
        slowest = max(readers, key=lambda r: r["overhead_p50_ns"], default=None)
        latest = max(readers, key=lambda r: r["wake_up_max_ns"], default=None)
        waits = sum(r["waits"] for r in readers)
        rows.append(
            [
                name,
                f"{ring['published']}",
                f"{ring['slot_bytes'] / 1e3:.3g}",
                _cost(ring) if ring["published"] else "-",
                f"{_cost(slowest)} ({slowest['name']})" if slowest else "-",
                f"{sum(r['wake_up_ns'] for r in readers) / waits / 1e3:,.0f} ({waits} waits)" if waits else "-",
                f"{latest['wake_up_max_ns'] / 1e3:,.0f} ({latest['name']})" if latest and waits else "-",
                f"{ring['waits']}",
                f"{sum(r['overruns'] for r in ring['readers'])}",
            ]
        )
    ax = part.add_axes((0.03, 0.1, 0.94, 0.76))
    ax.set_axis_off()
    table = ax.table(rows or [["-"] * len(columns)], colLabels=columns, cellLoc="right", edges="B", bbox=(0, 0, 1, 1))
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    for (row, column), cell in table.get_celld().items():
        cell.set(linewidth=0.4, edgecolor="#d0d7de")
        cell.set_text_props(color="#57606a" if row == 0 else INK, ha="left" if column == 0 else "right")


def _heading(summary: dict[str, Any]) -> str:
    v, i, c = summary["volumes"], summary["images"], summary["images"]["cadence_s"]
    pace = f", every {c['p50']:.3f} s" if c["p50"] else ""
    return (
        f"{v['received']} volumes ({v['lost']} lost, {v['unaligned']} unaligned) at TR {summary['tr_s']:g} s  |  "
        f"{i['shown']} images shown{pace}  |  seed {summary['seed']}  |  rtevo {summary['rtevo']}"
    )


def draw(out: Path) -> Figure:
    """Draw a run's page.

    Parameters
    ----------
    out : Path
        The session's folder.

    Raises
    ------
    DataError
        Where it holds no session.
    """
    if not (out / "record.jsonl").exists():
        raise DataError(f"{out}: expected the folder of a session (with record.jsonl), found none")
    if not (out / "summary.json").exists():
        finalise(out)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    trials, motion = [t for t in _read(out / "trials.tsv") if t.get("probe") is None], _read(out / "motion.tsv")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 8, "axes.edgecolor": "#8b949e"}):
        figure = Figure(figsize=(12, 9.6), dpi=110, facecolor="white")
        rows = figure.add_gridspec(2, 1, height_ratios=[8, 1.6])
        page, foot = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
        page.text(
            0.03,
            0.965,
            f"rtevo session {out.name}: {summary['condition']}, {summary.get('status', 'unfinished')}",
            fontsize=13,
            fontweight="bold",
        )
        page.text(0.03, 0.938, _heading(summary), fontsize=8.5, color="#57606a")
        halves = page.add_gridspec(1, 2)
        left, right = page.add_subfigure(halves[0]), page.add_subfigure(halves[1])
        for part in (left, right):
            part.set_facecolor("none")
        left.text(0.06, 0.895, "Images by generation (score; the fittest framed)", fontsize=9)
        _pictures(left, out, trials)
        grid = right.add_gridspec(4, 1, left=0.22, right=0.9, top=0.88, bottom=0.07, hspace=0.55, height_ratios=[1.5, 1, 0.7, 0.8])
        axes = [right.add_subplot(grid[i]) for i in range(4)]
        _fitness(axes[0], trials, summary["condition"])
        _motion(axes[1:3], motion)
        _latencies(axes[3], summary["latencies_ms"])
        _rings(foot, summary["rings"])
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m rtevo.report", description="Draw one page about a run: images by generation, fitness, motion, latencies, rings."
    )
    p.add_argument("out", type=Path, metavar="OUT", help="the session's folder")
    p.add_argument("--to", type=Path, metavar="FILE", help="file to write, .png, .pdf or .svg (default: OUT/report.png)")
    options = p.parse_args(arguments)
    target = options.to or options.out / "report.png"
    try:
        draw(options.out).savefig(target)
    except (RtevoError, ValueError) as error:
        print(f"rtevo: {error}", file=sys.stderr)
        return 1
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())

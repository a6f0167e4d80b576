"""The same on paper: three pages, drawn by matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtevo.report import figures, gallery, localizer
from rtevo.report.figures import INK, MUTED, STYLE
from rtevo.report.gather import Session
from rtevo.report.methods import methods
from rtevo.report.tables import RING_COLUMNS, heading, provenance, rings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["pages", "save"]

SIZE = (12, 9.6)  # inches
MAX_COLUMNS, MAX_ROWS = 12, 8  # candidates and generations that are shown as pictures; of more, the first, the last and some between
LINES = 62  # of text on a page


def pages(session: Session, controls: Sequence[Session] = ()) -> list[Figure]:
    """Draw a session: an overview, responses and quality, methods and provenance.

    Parameters
    ----------
    session : Session
    controls : sequence of Session
        Drawn beside it, for comparison.
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        if session.localizer:
            return [_localizer(session), *_text(session)]
        known = [_preferred(session)] if session.preferred is not None and session.preferred.known else []
        return [_overview(session, controls), *known, _course(session), *_text(session)]


def save(target: Path, drawn: Sequence[Figure]) -> list[Path]:
    """Write pages: one ``.pdf``, or one file a page: NAME.png, NAME-2.png, ...; gives their paths.

    Raises
    ------
    ValueError
        The kind of file is not known.
    """
    import matplotlib as mpl

    if target.suffix == ".pdf":
        from matplotlib.backends.backend_pdf import PdfPages

        with mpl.rc_context(STYLE), PdfPages(target) as file:
            for figure in drawn:
                file.savefig(figure)
        return [target]
    paths = [target if k == 0 else target.with_stem(f"{target.stem}-{k + 1}") for k in range(len(drawn))]
    with mpl.rc_context(STYLE):
        for path, figure in zip(paths, drawn, strict=True):
            figure.savefig(path)
    return paths


def _new(session: Session, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=110, facecolor="white")
    figure.text(0.03, 0.97, title, fontsize=13, fontweight="bold", va="center", color=INK)
    figure.text(0.03, 0.947, heading(session), fontsize=8.5, color=MUTED, va="center")
    return figure


def _overview(session: Session, controls: Sequence[Session]) -> Figure:
    figure = _new(session, f"rtevo session {session.out.name}: {session.condition}, {session.summary.get('status', 'unfinished')}")
    figure.text(0.06, 0.915, "Images by generation (score ± standard error; the fittest framed)", fontsize=9)
    generations = _chosen(session.generations)
    if generations:
        most = max(sum(int(t["generation"]) == g for t in session.evolved) for g in generations)
        columns = min(most, MAX_COLUMNS)
        height = (0.42 * SIZE[0] / columns + 0.25) / SIZE[1]  # a square picture and its title, as a share of the page
        bottom = max(0.23, 0.895 - len(generations) * height)
        grid = figure.add_gridspec(len(generations), columns, left=0.05, right=0.49, top=0.885, bottom=bottom, wspace=0.06, hspace=0.3)
        figures.pictures(grid.subplots(squeeze=False), session, generations)
    else:
        figure.text(0.27, 0.6, "no images", ha="center", color=MUTED)
    right = figure.add_gridspec(3, 1, left=0.57, right=0.93, top=0.9, bottom=0.25, hspace=0.42, height_ratios=[2, 1, 1])
    figures.fitness(figure.add_subplot(right[0]), session, controls)
    figures.motion(figure.add_subplot(right[1]), session)
    ax = figure.add_subplot(right[2])
    figures.latencies(ax, session.latencies)
    if session.latencies:
        ax.legend(loc="best", fontsize=6, frameon=True, framealpha=0.8, edgecolor="none")
    _rings(figure, session)
    return figure


def _chosen(generations: list[int]) -> list[int]:
    if len(generations) <= MAX_ROWS:
        return generations
    step = (len(generations) - 1) / (MAX_ROWS - 1)
    return [generations[round(i * step)] for i in range(MAX_ROWS)]


def _rings(figure: Any, session: Session) -> None:
    """List what handing messages over cost."""
    figure.text(0.03, 0.185, "Rings: time per message in the ring's own code, by the wall clock (µs: median / 99th percentile)", fontsize=9)
    ax = figure.add_axes((0.03, 0.015, 0.94, 0.16))
    ax.set_axis_off()
    rows = rings(session.summary.get("rings", {})) or [["–"] * len(RING_COLUMNS)]
    table = ax.table(rows, colLabels=RING_COLUMNS, cellLoc="right", edges="B", bbox=(0, 0, 1, 1))
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    for (row, column), cell in table.get_celld().items():
        cell.set(linewidth=0.4, edgecolor="#d0d7de")
        cell.set_text_props(color=MUTED if row == 0 else INK, ha="left" if column == 0 else "right")


def _course(session: Session) -> Figure:
    figure = _new(session, f"rtevo session {session.out.name}: responses and quality")
    grid = figure.add_gridspec(
        6, 1, left=0.16, right=0.95, top=0.91, bottom=0.06, hspace=0.62, height_ratios=[1.6, 0.7, 1.1, 0.9, 0.9, 0.9]
    )
    axes = [figure.add_subplot(grid[k]) for k in range(6)]
    figures.responses(axes[0], session)
    figures.timeline(axes[1], session)
    figures.motion(axes[2], session)
    figures.quality(axes[3:], session)
    return figure


def _preferred(session: Session) -> Figure:
    """The gallery of preferred images, and what drives it."""
    figure, found = _new(session, f"rtevo session {session.out.name}: what is preferred, and what drives it"), session.preferred
    assert found is not None
    said = " ".join(filter(None, [gallery.verdict(found), gallery.what_it_means(session.condition)]))
    figure.text(0.03, 0.915, textwrap.fill(said, 170), fontsize=8.5, va="top", color=INK)
    text = f"Above a random image: posterior mean, 90% interval ({figures.what(session)})"
    figure.text(0.03, 0.855, f"Distinct preferred images. {text}", fontsize=9, color=INK)
    if found.gallery:
        grid = figure.add_gridspec(1, gallery.MOST, left=0.03, right=0.97, top=0.83, bottom=0.66, wspace=0.15)
        figures.gallery([figure.add_subplot(grid[k]) for k in range(len(found.gallery))], session.out, found.gallery)
    if found.along:
        bars = figure.add_gridspec(1, 2, left=0.16, right=0.97, top=0.5, bottom=0.2, wspace=0.45)
        titles = "responses rise towards", "and fall towards"
        for k, (title, named) in enumerate(zip(titles, (found.along, found.against), strict=True)):
            figures.along(figure.add_subplot(bars[k]), named, title)
    return figure


def _localizer(session: Session) -> Figure:
    """Draw the pictures over time, and the quality of the volumes."""
    figure = _new(session, f"rtevo localizer {session.out.name}: {session.summary.get('status', 'unfinished')}")
    told = "; ".join(f"{what}: {value}" for what, value in localizer.task(session)[:-1])
    figure.text(0.03, 0.925, told, fontsize=8, color=MUTED, va="center")
    grid = figure.add_gridspec(
        6, 1, left=0.16, right=0.95, top=0.88, bottom=0.06, hspace=0.62, height_ratios=[1.6, 0.7, 1.1, 0.9, 0.9, 0.9]
    )
    axes = [figure.add_subplot(grid[k]) for k in range(6)]
    localizer.order(axes[0], session)
    figures.timeline(axes[1], session)
    figures.motion(axes[2], session)
    figures.quality(axes[3:], session)
    return figure


def _text(session: Session) -> list[Figure]:
    """Methods, references and provenance, on as many pages as they need."""
    lines: list[tuple[str, bool]] = []
    paragraphs, references = methods(session)
    for title, text in paragraphs:
        lines += [(title, True), *((line, False) for line in textwrap.wrap(text, 185)), ("", False)]
    lines.append(("References", True))
    for number, reference in enumerate(references, 1):
        lines += [(line, False) for line in textwrap.wrap(f"{number}. {reference}", 185, subsequent_indent="    ")]
    lines += [("", False), ("Provenance", True)]
    for name, value in provenance(session):
        lines += [(line, False) for line in textwrap.wrap(f"{name}: {value}", 185, subsequent_indent="    ")]
    drawn = []
    for first in range(0, len(lines), LINES):
        figure = _new(session, f"rtevo session {session.out.name}: methods and provenance")
        for k, (line, bold) in enumerate(lines[first : first + LINES]):
            figure.text(
                0.04,
                0.915 - 0.0145 * k,
                line,
                fontsize=7.5,
                fontweight="bold" if bold else "normal",
                color=INK,
                va="center",
                parse_math=False,
            )
        drawn.append(figure)
    return drawn

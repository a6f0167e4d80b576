"""One self-contained HTML page about a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rtevo.record import image_path
from rtevo.records import FD_LIMIT_MM
from rtevo.report import figures, gallery, localizer, tables
from rtevo.report.gather import Row, Session, means
from rtevo.report.methods import methods

__all__ = ["page", "render", "svg", "thumbnail"]

THUMBNAIL = 224  # pixels: twice as many as they are shown with
WIDTH, DPI = 11.4, 100  # of a plot, inches


def page(session: Session, controls: Sequence[Session] = ()) -> str:
    """Write a session as HTML; nothing in it is loaded from anywhere.

    Parameters
    ----------
    session : Session
    controls : sequence of Session
        Drawn beside it, for comparison.
    """
    paragraphs, references = methods(session)
    own = [("task", "Task")] if session.localizer else [("preferred", "What drives it"), ("fitness", "Fitness")]
    sections = [("images", "Images"), *own, ("quality", "Motion and quality"), ("timing", "Timing")]
    return render(
        Path(__file__).parent / "page.html",
        name=session.out.name,
        lead=f"{session.condition}, {session.summary.get('status', 'unfinished')}  |  {tables.heading(session)}",
        sections=[*sections, ("methods", "Methods"), ("provenance", "Provenance")],
        blinded=session.blinded,
        task=localizer.task(session) if session.localizer else [],
        figures=tables.figures_of(session),
        decoder_today=tables.decoder_today(session),
        warnings=tables.warnings(session),
        images_note=_images_note(session),
        generations=_categories(session) if session.localizer else _generations(session),
        preferred=_preferred(session),
        plots=_plots(session, controls),
        overlays=_overlays(session),
        fitness_caption=_fitness_caption(session, controls),
        quality_caption=_quality_caption(session),
        latency_note=_latency_note(session),
        steps=tables.steps(session),
        late=tables.late(session),
        ring_columns=tables.RING_COLUMNS,
        rings=tables.rings(session.summary.get("rings", {})),
        methods=paragraphs,
        references=references,
        provenance=tables.provenance(session),
        settings=tables.settings(session),
    )


def render(template: Path, **values: Any) -> str:
    """Fill a page in; it has the reports' one style, and ``plot(data, caption)`` for its figures.

    Parameters
    ----------
    template : Path
        Of jinja2; text is escaped, and an unknown name is an error.
    **values
        What it names.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    style = Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))
    return environment.from_string(template.read_text(encoding="utf-8")).render(style=style, plot=_plot, **values)


def _images_note(session: Session) -> str:
    if session.localizer:
        return "Each picture of a category once, in the order of first showing."
    if session.blinded:
        return "Scores are hidden: the session is blinded."
    if session.condition == "ratings":
        return "Below each image its rating; the fittest of a generation framed."
    return (
        "Below each image the brain's response to it ± its standard error (the bar: on one scale for all; line: 0); the fittest of a "
        "generation framed."
    )


def _quality_caption(session: Session) -> str:
    resumed = " Dotted: the session was interrupted and resumed." if len(session.summary.get("parts", [])) > 1 else ""
    return f"Dashed: {FD_LIMIT_MM:g} mm, the usual limit; spikes: over {session.settings['decoder']['spike_mm']:g} mm.{resumed}"


def _latency_note(session: Session) -> str:
    if not float(session.summary.get("speed", 1.0)):
        return "In this session time waited for the computer (speed max): these are computing times, and nothing could be late."
    return "Deadlines: one repetition time for the steps of a volume, the cadence for a picture."


def _fitness_caption(session: Session, controls: Sequence[Session]) -> str:
    text = "Small: single images. Large: mean of a generation ± standard error of the mean over its images."
    if session.gated or any(control.gated for control in controls):
        arms = (session, *controls)
        own = [f"{arm.condition}: {arm.refused} refused, {arm.taken_away} taken away, of {len(arm.trials)}" for arm in arms]
        text += f" Pictures that did not pass: {'; '.join(own)}."
    if not controls:
        text += " No control session was given (--control OUT of a sham, yoked or random session)."
    return text


# --- pictures --------------------------------------------------------------------------------------------------------------------------


def _generations(session: Session) -> list[dict[str, Any]]:
    """Rows of pictures: one for each generation, and one for the probes."""
    scale = _scale(session)
    rows = []
    for generation in session.generations:
        own = sorted((t for t in session.evolved if int(t["generation"]) == generation), key=lambda t: t["candidate"])
        best = max((t["fitness"] for t in own if t["fitness"] is not None), default=None)
        _, mean, se = means(own, "fitness", [generation])
        text = f"{mean[0]:+.2f}" + (f" ± {se[0]:.2f}" if se[0] == se[0] else "") if len(mean) else ""
        shown = [_picture(session, t, scale, best is not None and t["fitness"] == best) for t in own]
        rows.append({"title": f"Generation {generation}", "mean": text, "pictures": shown})
    if session.probes:
        rows.append(
            {
                "title": "Probes",
                "mean": "in order of presentation",
                "pictures": [_picture(session, t, scale, False) for t in session.probes],
            }
        )
    return rows


def _categories(session: Session) -> list[dict[str, Any]]:
    """Rows of pictures of a localizer: one for each category."""
    rows = []
    for name, text, pictures in localizer.categories(session):
        shown = [
            {"data": thumbnail(path), "label": "", "title": row["stim_file"], "best": False, "shown": True, "bar": None}
            for path, row in pictures
        ]
        rows.append({"title": name, "mean": text, "pictures": shown})
    return rows


def _preferred(session: Session) -> dict[str, Any] | None:
    """Return the page's section on the preference; None if it is hidden."""
    found = session.preferred
    if found is None:
        return None
    shown = [
        {
            "data": thumbnail(image_path(session.out, *each.key)),
            "title": f"generation {each.key[0]}, image {each.key[1]}",
            "response": f"{each.response:+.2f}",
            "interval": f"{each.low:+.2f} to {each.high:+.2f}",
            "words": gallery.words(each),
        }
        for each in found.gallery
    ]
    return {
        "verdict": gallery.verdict(found),
        "means": gallery.what_it_means(session.condition),
        "known": found.known,
        "curved": found.curved,
        "gallery": shown,
        "unit": _unit(session, found.runs),
        "sides": [("Responses rise towards", _named(found.along)), ("and fall towards", _named(found.against))] if found.along else [],
    }


def _unit(session: Session, runs: int) -> str:
    return f"{figures.what(session)}, in the unit of its scores" + (" in the first of the runs" if runs > 1 else "")


def _named(named: Sequence[gallery.Named]) -> list[dict[str, str]]:
    """Pictures of the latent space, with how they lie to the direction."""
    return [
        {
            "name": each.name,
            "data": jpeg(each.thumbnail),
            "cosine": f"{each.cosine:+.2f}",
            "interval": f"{each.low:+.2f} to {each.high:+.2f}",
        }
        for each in named
    ]


def jpeg(data: bytes) -> str:
    """A JPEG file as a data URI; empty where there is none."""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" if data else ""


def _scale(session: Session) -> tuple[float, float] | None:
    """Range of all scores with their standard errors."""
    ends = [t["score"] + sign * (t.get("score_se") or 0.0) for t in session.trials if t.get("score") is not None for sign in (-1, 1)]
    return (min(ends), max(ends)) if ends and max(ends) > min(ends) and session.condition != "ratings" else None


def _picture(session: Session, trial: Row, scale: tuple[float, float] | None, best: bool) -> dict[str, Any]:
    generation, candidate = int(trial["generation"]), int(trial["candidate"])
    onset = "not shown" if trial["onset"] is None else f"onset {trial['onset']:.3f} s"
    probe = "" if trial.get("probe") is None else f", probe {trial['probe']:.0f}"
    maps = "".join(f"; {name} {trial[column]:+.2f}" for name, column in tables.maps_of(session) if trial.get(column) is not None)
    return {
        "data": thumbnail(image_path(session.out, generation, candidate)),
        "label": figures.label(session, trial),
        "title": f"generation {generation}, image {candidate}{probe}: {onset}{maps}",
        "best": best,
        "shown": trial["onset"] is not None,
        "bar": _bar(trial, scale) if scale and trial.get("score") is not None else None,
    }


def _bar(trial: Row, scale: tuple[float, float]) -> dict[str, float | None]:
    low, high = scale

    def at(value: float) -> float:
        return round(4 + 104 * (value - low) / (high - low), 1)

    se = trial.get("score_se") or 0.0
    zero = at(0.0) if low < 0 < high else None
    return {"at": at(trial["score"]), "low": at(trial["score"] - se), "high": at(trial["score"] + se), "zero": zero}


def thumbnail(path: Path) -> str:
    """A picture as a data URI, no larger than need be; empty where it was not kept."""
    from PIL import Image

    if not path.exists():
        return ""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "PNG") if max(small.size) < THUMBNAIL else small.save(file, "JPEG", quality=88)
    kind = "png" if max(small.size) < THUMBNAIL else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


# --- plots -----------------------------------------------------------------------------------------------------------------------------


def _plot(data: str, caption: str) -> Markup:
    text = Markup("<figcaption class='note'>{}</figcaption>").format(caption) if caption else ""
    return Markup("<figure class='plot'><img src='{}' alt=''>{}</figure>").format(data, text)


def _plots(session: Session, controls: Sequence[Session]) -> dict[str, str]:
    def all_of(*panels: Callable[[Any], None]) -> Callable[[Sequence[Any]], None]:
        def draw(axes: Sequence[Any]) -> None:
            for panel, ax in zip(panels, axes, strict=True):
                panel(ax)

        return draw

    def quality(axes: Sequence[Any]) -> None:
        figures.motion(axes[0], session)
        figures.quality(axes[1:], session)

    measured = {
        "quality": svg(7.6, [1.4, 1, 1, 1], quality),
        "latencies": svg(2.9, [1], all_of(lambda ax: figures.latencies(ax, session.latencies)), right=0.78),
        "timeline": svg(1.6, [1], all_of(lambda ax: figures.timeline(ax, session)), left=0.17),
    }
    if session.localizer:
        return {**measured, "learnt": "", "order": svg(2.6, [1], all_of(lambda ax: localizer.order(ax, session)), left=0.12)}
    return {
        **measured,
        "fitness": svg(4.0, [1], all_of(lambda ax: figures.fitness(ax, session, controls))),
        "responses": svg(3.0, [1], all_of(lambda ax: figures.responses(ax, session))),
        "learnt": "" if session.learnt is None else svg(3.6, [1, 1], lambda axes: figures.learnt(axes, session)),
    }


def _overlays(session: Session) -> list[str]:
    """Pictures of how the decoder was placed where it came from another grid, as data URIs."""
    from rtevo.errors import DecoderError
    from rtevo.report.overlay import draw_attempt

    settings, found = session.settings["decoder"], []
    for placement in session.summary.get("placements", []):
        if placement["own_grid"]:
            continue
        with suppress(DecoderError):  # the decoder's folder is no longer there
            folder = Path(settings["folder"] or session.out / "decoder")
            picture = draw_attempt(session.out, folder, settings["name"] or None, placement["part"], placement["attempt"])
            if picture is not None:
                found.append(f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}")
    return found


def svg(height: float, ratios: list[float], draw: Callable[[Sequence[Any]], None], left: float = 0.065, right: float = 0.94) -> str:
    """Draw panels below each other; gives an SVG as a data URI.

    Parameters
    ----------
    height : float
        Inches.
    ratios : list of float
        Heights of the panels, against each other.
    draw : callable
        Is given their axes.
    left, right : float
        Margins, as shares of the width.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**figures.STYLE, "svg.fonttype": "path", "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9}):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        top, bottom = 1 - 0.3 / height, 0.48 / height
        grid = figure.add_gridspec(len(ratios), 1, height_ratios=ratios, left=left, right=right, top=top, bottom=bottom, hspace=0.42)
        draw([figure.add_subplot(grid[k]) for k in range(len(ratios))])
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"

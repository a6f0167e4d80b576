"""The console's panels as HTML. Every text that comes from elsewhere is escaped here."""

from __future__ import annotations

import math
from html import escape

from rtevo.config import presenter_is_outside
from rtevo.console.desk import Desk
from rtevo.console.maps import FEWEST, KINDS
from rtevo.console.view import FULL, LATENCIES, Trial, View
from rtevo.console.waits import FOLLOWING

__all__ = ["STATES", "alarms", "figures", "generation", "goes_on", "health", "messages", "now", "placement", "span", "state", "upcoming"]

STATES = {  # words, colour
    "starting": ("Getting ready", "dim"),
    "ready": ("Ready: press Start", "calm"),
    "presenter": ("Waiting for the stimulus PC", "amber"),
    "trigger": ("Waiting for the trigger", "blue"),
    "volume": ("Waiting for the first volume", "blue"),
    "placing": ("Placing the decoder", "blue"),
    "asked": ("Placement: your decision", "amber"),
    "running": ("Running", "calm"),
    "pausing": ("Pausing after this image", "amber"),
    "paused": ("Paused", "amber"),
    "held": ("Images are held: your decision", "red"),
    "stopping": ("Ending", "amber"),
    "completed": ("Completed", "calm"),
    "stopped": ("Stopped", "amber"),
    "unscored": ("Ended without scores", "red"),
    "failed": ("Failed", "red"),
    "between": ("Run over: what follows?", "amber"),
    "following": ("The next run is being prepared", "blue"),
}
SCENES = {
    "nothing": "The stimulus PC is not connected yet",
    "waiting": "Waiting text",
    "fixation": "Fixation",
    "rating": "Rating scale",
    "late": "Fixation: waiting for the next image",
    "paused": "Fixation: paused",
    "placing": "Fixation: placing the decoder",
    "over": "The end",
    "between": "Text between runs",
}


MOST_UPCOMING = 5
LINGER_S = 1.0  # a picture that has just appeared can be taken out like one that is about to
OF_EVOLUTION = ("score", "evolve", "paint")  # latencies that a localizer does not have
UNSCORED = "The session is over, but its last images, or all of them, could not be scored: see the warnings."


def _time(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _number(value: float, form: str = "+.2f") -> str:
    return "–" if math.isnan(value) else format(value, form).replace("-", "−")


def state(desk: Desk) -> str:
    """Return the session's state in a word."""
    words, colour = STATES[desk.state]
    return f'<div class="state {colour}">{words}</div>'


def figures(desk: Desk) -> str:
    """Return participant, time and progress."""
    view, config = desk.view, desk.plan.config
    since = view.run.seconds(desk.clock.now_ns())
    generation = (view.last or (0, 0))[0] + 1
    blocks = {block for block, _ in view.planned}
    where = ("block", f"{generation} of {len(blocks)}") if blocks else ("generation", f"{generation} of {config.evolution.generations}")
    who = f"sub-{config.session.participant} ses-{config.session.session} run-{config.session.run}"
    cells = [
        ("", who),
        ("time", _time(since)),
        where,
        ("image", f"{view.shown} of {desk.images}"),
        ("volume", str(view.volumes[-1].index + 1) if view.volumes else "–"),
    ]
    return "".join(f"<span>{label} <b>{escape(value)}</b></span>" for label, value in cells)


def goes_on(desk: Desk, left_s: float) -> str:
    """Return the text of Stop's question about the session that continues meanwhile."""
    words, colour = STATES[desk.state]
    how_far = f"image {desk.view.shown} of {desk.images}"
    return (
        f'<p><span class="{colour}">{words}</span>, {how_far}: the session continues until you stop it. This question closes in '
        f"{max(left_s, 0):.0f} s.</p>"
    )


def alarms(desk: Desk) -> str:
    """Return what is not in order, in plain words."""
    found = [] if desk.over else desk.view.alarms(desk.clock.now_s(), desk.depths)
    if desk.over:
        what = {"completed": "The session is over.", "stopped": "The session was stopped; everything is saved.", "unscored": UNSCORED}
        errors = [text for _, kind, text in desk.view.messages if kind == "error"]
        ended = desk.ended
        words = what.get(ended) or " ".join(["The session has failed; what was recorded is saved.", *errors[-1:]])
        colour = "red" if ended in ("failed", "unscored") else "calm"
        return f'<p class="{colour}">{escape(words[:400])} Results: {escape(str(desk.plan.out))}</p>' + _offered(desk)
    return "".join(f"<p>{escape(text)}</p>" for text in found) or '<p class="calm">Nothing to report.</p>'


def _offered(desk: Desk) -> str:
    """Return what may follow a run of a visit, and what the participant sees meanwhile."""
    if not desk.offered:
        return ""
    means = [(name, what) for choice, (_, name, what) in FOLLOWING.items() if choice in desk.offered and what]
    found = "".join(f"<p>{escape(text[:400])}</p>" for text in desk.said)
    found += "".join(f'<p class="calm"><b>{escape(name.capitalize())}</b>: {escape(what)}.</p>' for name, what in means)
    if not presenter_is_outside(desk.plan.config):
        return found
    if not desk.between:
        return f"{found}<p>The stimulus PC is not connected.</p>"
    text = " ".join(desk.plan.config.presentation.between_text.split())
    return f'{found}<p class="calm">The stimulus PC is connected; the participant reads: {escape(text)}</p>'


def now(desk: Desk) -> str:
    """Return what the participant sees."""
    view, scene = desk.view, SCENES.get("between" if desk.between else desk.view.scene, "")
    if view.showing is not None:
        generation, candidate = view.showing
        picture = f'<img src="picture/{generation}/{candidate}" alt="">'
        trial = view.planned.get(view.showing)
        scene = f"Generation {generation + 1}, image {candidate + 1}" if trial is None else escape(f"{trial['category']}/{trial['file']}")
    else:
        picture = f'<div class="empty">{"+" if view.scene in ("fixation", "late", "paused", "placing") else ""}</div>'
    return f'<h2>On the participant\'s screen</h2>{picture}<p class="scene">{scene}</p><p class="dim">{_next(desk)}</p>'


def _next(desk: Desk) -> str:
    """Return when the picture changes."""
    view, p = desk.view, desk.plan.config.presentation
    elapsed = desk.clock.now_s() - view.since_s
    if view.run.trigger_ns is None or view.scene in ("over", "nothing", "waiting", "rating"):
        return "&nbsp;"
    if view.planned and view.scene in ("image", "fixation") and view.last is not None:
        return f"next picture in {max(0.0, view.due_s - desk.clock.now_s()):.0f} s"
    if view.scene == "image":
        return f"for another {max(0.0, p.image_s - elapsed):.0f} s"
    if view.scene == "fixation" and view.last is not None:
        return f"next image in {max(0.0, p.washout_s - elapsed):.0f} s"
    return f"for {elapsed:.0f} s"


def upcoming(desk: Desk) -> str:
    """Return the pictures to be shown next, for the person who may take them out; empty if nobody is asked."""
    approval = desk.plan.config.safety.approval
    if approval == "none" or desk.over:
        return ""
    view, tiles, now_s = desk.view, [], desk.clock.now_s()
    own = list(view.upcoming)
    shown = view.on_screen(now_s)
    if shown is not None and now_s - view.onsets[-1][0] < LINGER_S and not shown.refused:
        own.insert(0, shown)  # a key that is on its way means it
    undecided = [t for t in own if approval == "veto" or t.name not in view.approved]
    keyed = next(iter([*undecided, *own]), None)  # the one that the keys mean
    for trial in own[:MOST_UPCOMING]:
        first = trial is keyed
        asked = approval == "each" and trial.name not in view.approved
        buttons = _press("Show", "Y" if first else "", "show", trial.name, "go") if asked else ""
        buttons += _press("Take out", "V" if first else "", "veto", trial.name, "halt")
        picture = f"picture/{trial.generation}/{trial.candidate}"
        tiles.append(f'<figure class="tile"><img src="{picture}" alt="image {trial.generation}/{trial.candidate}">{buttons}</figure>')
    ask = "Each is shown once you approve it." if approval == "each" else "Each is shown unless you take it out."
    empty = '<p class="dim">The next picture is being painted.</p>'
    return f"<h2>Next <span>{ask}</span></h2><div class='tiles'>{''.join(tiles) or empty}</div>"


def _press(words: str, key: str, action: str, text: str, kind: str) -> str:
    """Return a button that press.js knows, like those of the page."""
    shown = f"<kbd>{key}</kbd>" if key else ""
    return f'<button class="{kind}" data-key="{key}" data-action="{action}" data-text="{text}">{words}{shown}</button>'


def placement(view: View) -> str:
    """Return the attempt that waits for the operator: the overlay and its figures; empty if none does."""
    asked = view.asked
    if asked is None:
        return ""
    figures = (
        f"expected error {asked.expected_error_mm:.2f} mm, correlation {asked.correlation:.2f}, {asked.overlap:.0%} of the "
        f"decoder's head and {asked.weight_kept:.0%} of its weight in today's field of view"
    )
    return (
        f"<h2>The decoder on today's head: {escape(asked.verdict)}</h2><p>{figures}.</p>"
        f'<img class="overlay" src="placement/{view.part}/{asked.attempt}" alt="edges of the decoder\'s reference on today\'s volume">'
    )


def messages(view: View) -> str:
    """Return warnings and the operator's actions, the last first."""
    colours = {"warning": "amber", "alarm": "red", "error": "red", "operator": "blue"}
    rows = [
        f'<p><time>{_time(t_s)}</time><span class="{colours[kind]}">{escape(text[:300])}</span></p>'
        for t_s, kind, text in reversed(view.messages)
    ]  # fmt: skip
    return "<h2>Warnings and notes</h2>" + ("".join(rows) or '<p class="dim">None.</p>')


def span(view: View) -> tuple[float, float]:
    """Return the range of all scores with their errors: every tile is drawn to it."""
    ends = [t.value + sign * (0 if math.isnan(t.error) else t.error) for t in view.trials.values() for sign in (-1, 1)]
    known = [end for end in ends if not math.isnan(end)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    return (low, high) if high > low else (low - 1, high + 1)


def generation(view: View, number: int, trials: list[Trial], limits: tuple[float, float]) -> str:
    """Return one generation: its pictures with scores and error bars."""
    means = {g: (mean, error) for g, mean, error in view.means()}
    told = ""
    if number in means:
        mean, error = means[number]
        told = f"<span>fitness {_number(mean)}" + ("" if math.isnan(error) else f" ± {error:.2f}") + "</span>"
    scored = [t for t in trials if not math.isnan(t.value)]
    best = max(scored, key=lambda t: t.value, default=None) if len(scored) == len(trials) > 1 else None
    tiles = "".join(_tile(view, trial, limits, trial is best) for trial in trials)
    of_block = view.planned.get((number, 0))
    if of_block is not None:
        return f'<h3>Block {number + 1}: {escape(of_block["category"])}</h3><div class="tiles">{tiles}</div>'
    return f'<h3>Generation {number + 1} {told}</h3><div class="tiles">{tiles}</div>'


def _tile(view: View, trial: Trial, limits: tuple[float, float], best: bool) -> str:
    showing = view.showing == (trial.generation, trial.candidate)
    kinds = [name for name, so in (("showing", showing), ("best", best), ("waiting", not trial.shown)) if so]
    name = f"generation-{trial.generation:02d}/candidate-{trial.candidate:02d}"
    title = escape(f"{name}: {trial.maps}" if trial.maps else name)
    picture = f'<img src="picture/{trial.generation}/{trial.candidate}?small=1" alt="{name}" title="{title}">'
    if math.isnan(trial.value):
        coming = "taken away" if trial.refused else "not shown" if view.scene == "over" else "to come"
        words = "on screen" if showing else coming if not trial.shown else "hidden" if view.blinded else "no score yet"
        if view.planned and trial.shown and not showing:
            words = "target" if view.planned.get((trial.generation, trial.candidate), {}).get("target") else "shown"
        return f'<figure class="tile {" ".join(kinds)}">{picture}<div class="dim">{words}</div></figure>'
    low, high = limits
    at, wide = (trial.value - low) / (high - low), (0.0 if math.isnan(trial.error) else trial.error) / (high - low)
    bar = f'<i style="left:{100 * (at - wide):.1f}%;width:{200 * wide:.1f}%"></i><b style="left:{100 * at:.1f}%"></b>'
    error = "" if math.isnan(trial.error) else f' <span class="dim">± {trial.error:.2f}</span>'
    words = ("probe " if trial.probe else "") + _number(trial.value) + error
    return f'<figure class="tile {" ".join(kinds)}">{picture}<div class="scale">{bar}</div><div>{words}</div></figure>'


def health(desk: Desk) -> str:
    """Return the state of scanner, presenter, stages and rings."""
    rows = "".join(f"<div>{label}</div><div class='{colour}'>{escape(words)}</div>" for label, words, colour in _equipment(desk))
    stages = "".join(_latency_row(desk.view, name) for name in LATENCIES if not (desk.view.planned and name in OF_EVOLUTION))
    rings = "".join(
        f"<div><span>{name}</span><b class='{'amber' if waiting > FULL * slots else ''}'>{waiting}/{slots}</b></div>"
        for name, (waiting, slots) in desk.depths.items()
        if not (desk.view.blinded and name == "fitness")  # the number of fitness values depends on the condition
    )
    head = "<tr class='head'><td></td><td>usual</td><td>longest</td><td>allowed</td><td></td></tr>"
    return (
        f'<div class="rows">{rows}</div><h2>Duration of the stages, ms</h2><table>{head}{stages}</table>'
        f'<h2>Waiting in the rings</h2><div class="rings">{rings}</div>'
    )


def maps(desk: Desk) -> str:
    """Return the live maps, or why there are none."""
    found = desk.maps
    if found.problem:
        return f'<h2>Live maps</h2><p class="dim">{escape(found.problem)}</p>'
    if not found.kinds:
        return f'<h2>Live maps</h2><p class="dim">After {FEWEST} volumes, once the decoder lies on today\'s head.</p>'
    pictures = "".join(
        f'<p class="dim">{KINDS[kind]}</p><img src="map/{kind}?{found.shown}" alt="{KINDS[kind]}, three planes">' for kind in found.kinds
    )
    hidden = '<p class="dim">The contribution is hidden: it would reveal the score.</p>' if desk.view.blinded and found.decoded else ""
    how = "" if found.realigned else ", not realigned"
    return f"<h2>Live maps <span>{found.shown} volumes{how}</span></h2>{pictures}{hidden}"


def _equipment(desk: Desk) -> list[tuple[str, str, str]]:
    """Label, words and colour of scanner, presenter, clock and data."""
    view, now_s = desk.view, desk.clock.now_s()
    if view.run.trigger_ns is None:
        scanner = ("not started", "dim")
    elif math.isnan(view.volume_s):
        scanner = ("triggered, no volume yet", "amber")
    elif desk.over or view.scene == "over":
        scanner = (f"{len(view.volumes)} volumes", "")
    else:
        age = now_s - view.volume_s
        scanner = (f"volume {view.volumes[-1].index + 1}, {age:.1f} s ago", "amber" if age > 4 * view.tr_s else "calm")
    presenter = (view.presenter, "calm") if view.presenter else ("not connected yet", "amber")
    if view.silent:
        presenter = ("does not answer", "red")
    clock = "–" if math.isnan(view.clock_error_ms) else f"± {view.clock_error_ms:.2f} ms"
    moved = view.volumes[-1].displacement_mm if view.volumes else math.nan
    return [
        ("Scanner", *scanner),
        ("Task", view.task.words(), "") if view.planned else ("Decoder", *_decoder(view)),
        ("Stimulus PC", *presenter),
        ("Its clock", clock, ""),
        ("Displacement", "–" if math.isnan(moved) else f"{moved:.2f} mm", ""),
        *((name.capitalize(), *_rate(rate)) for name, rate in view.rates.items()),
        ("Volumes missing", str(view.missing), "amber" if view.missing else ""),
        ("Images late", str(view.held), "amber" if view.held else ""),
        ("Pictures refused", str(view.refusals), "amber" if view.refusals else ""),
    ]


def _rate(rate: float) -> tuple[str, str]:
    """Return a rate in words, and its colour."""
    return ("not used", "amber") if math.isnan(rate) else (f"{rate:.0f} a minute", "")


def _decoder(view: View) -> tuple[str, str]:
    """Return how the decoder lies on today's head, and the colour."""
    if view.placement is None:
        return "not placed yet", "dim"
    colour = {"good": "calm", "doubtful": "amber"}.get(view.placement.verdict, "red")
    return f"{view.placement.verdict}, ± {view.placement.expected_error_mm:.2f} mm", colour


def _latency_row(view: View, name: str) -> str:
    latency, what = view.latencies[name], LATENCIES[name][1]
    allowed = "–" if math.isinf(latency.deadline_ms) else f"{latency.deadline_ms:.0f}"
    share = 0.0 if math.isnan(latency.worst) else latency.worst / latency.deadline_ms
    colour = "red" if share > 1 else "amber" if share > 0.75 else ""
    bar = f'<div><i class="{colour}" style="width:{100 * min(1.0, share):.0f}%"></i></div>'
    cells = (_number(latency.usual, ".0f"), _number(latency.worst, ".0f"), allowed)
    return f"<tr><th>{what}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + f'<td class="meter">{bar}</td></tr>'

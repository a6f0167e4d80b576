"""The console's page: one object for each browser that shows it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nicegui import ui

from rtevo.console import charts, markup
from rtevo.console.desk import Desk
from rtevo.session.orders import CHOICES

__all__ = ["Page"]

REFRESH_S = 0.5
LATE_NS = 1_000_000_000  # a press that took longer to come means nothing that is on the screen now
ANSWER_S = 20.0  # Stop's question goes away by itself after so long
STYLE = Path(__file__).with_name("style.css")
PRESS = Path(__file__).with_name("press.js")
NOTES = ("moved", "talked", "coughed", "pressed the bell", "eyes closed", "scanner stopped")


class Page:
    """The page in one browser, and the keys pressed in it.

    Parameters
    ----------
    desk : Desk
    """

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._drawn: dict[str | int, Any] = {}
        self.ended = False  # and the browser shows it
        self._changed, self._asked_s = -1, 0.0
        ui.add_css(STYLE.read_text(encoding="utf-8"))
        with ui.element("div").classes("page"):
            with ui.element("div").classes("bar"):
                self.state, self.figures = self._html(""), self._html("figures")
                self._make_buttons()
            self.alarms = self._html("alarms")
            with ui.element("div").classes("panel now"):
                self.now, self.messages = self._html(""), self._html("log")
            self.upcoming = self._html("panel upcoming")
            self.placement = self._html("panel generations")
            self.generations = ui.element("div").classes("panel generations")
            with ui.element("div").classes("panel health"):
                self.health, self.maps = self._html(""), self._html("maps")
            self._make_charts()
        self._make_dialogs()
        self.client = ui.context.client
        script = PRESS.read_text(encoding="utf-8").replace("CLIENT", json.dumps(self.client.id))
        ui.add_body_html(f"<script>{script}</script>")
        ui.timer(REFRESH_S, self.tick)
        self.draw()

    # --- parts ----------------------------------------------------------------------------------------------------------------------

    def _html(self, classes: str) -> ui.html:
        return ui.html("", sanitize=False).classes(classes)  # rtevo.console.markup escapes

    def _button(self, words: str, key: str, action: str, classes: str = "", text: str = "") -> ui.button:
        """Make a button; press.js sends what it and its key stand for to :meth:`press`."""
        button = ui.button(color=None).props("unelevated no-caps").classes(classes)
        button.props["data-key"] = {"Space": " ", "Esc": "Escape"}.get(key, key)
        button.props["data-action"], button.props["data-text"] = action, text
        button.on("mousedown", js_handler="(e) => e.preventDefault()")  # it does not take the keyboard
        with button:
            ui.html(f"{words}<kbd>{key}</kbd>" if key else words, sanitize=False)
        return button

    def _make_buttons(self) -> None:
        with ui.element("div").classes("buttons"):
            self.start = self._button("Start", "S", "start", "go")
            self.pause = self._button("Pause", "Space", "pause")
            self.go_on = self._button("Go on", "Space", "go_on", "go")
            self.mark = self._button("Mark", "M", "ask-mark")
            self.accept = self._button("Accept", "Y", "accept", "go")
            self.again = self._button("Next volumes", "N", "again")
            self.restart = self._button("New run", "R", "restart")
            self.admit = self._button("Let it in", "L", "admit")
            self.correct = self._button("Correct start", "C", "correct")
            self.seen = self._button("Seen", "K", "seen", "halt")
            self.away = self._button("Take away", "T", "away", "away")
            self.stop = self._button("Stop", "X", "ask-stop", "halt")
            self.following = {
                "next": self._button("Next run", "N", "next_run", "go"),
                "again": self._button("Same again", "A", "same_again"),
                "resume": self._button("Resume run", "R", "resume_run"),
                "end": self._button("End the visit", "E", "end_visit", "halt"),
            }

    def _make_charts(self) -> None:
        view = self.desk.view
        self.charts: dict[str, tuple[ui.echart, Callable[[Any], dict[str, Any]]]] = {}
        titles = {
            "fitness": ("Fitness by generation", "mean ± standard error", charts.fitness),
            "displacement": ("Framewise displacement, mm", "limits dashed", charts.displacement),
            "motion": ("Motion, mm", "limit: one voxel", charts.motion),
        }
        if view.localizer:
            del titles["fitness"]
        with ui.element("div").classes("charts"):
            for name, (title, note, options) in titles.items():
                with ui.element("div").classes("panel"):
                    self._html("").content = f"<h2>{title}<span>{note}</span></h2>"
                    if name == "fitness" and view.blinded:
                        approved = self.desk.plan.config.safety.approval != "none"
                        why = "the person who takes pictures out must not see scores" if approved else "this session is blinded"
                        self._html("hidden-scores").content = f"Scores are hidden: {why}."
                    else:
                        self.charts[name] = (ui.echart(options(view)), options)

    def _make_dialogs(self) -> None:
        # it stands below what it asks about, and dims and blocks nothing: the session continues
        with ui.dialog().props("transition-duration=0 seamless position=bottom") as self.stop_dialog, ui.card().classes("asks"):
            self._html("").content = "<p>End the session now? The image disappears; everything is saved.</p>"
            self.goes_on = self._html("dim")
            with ui.element("div").classes("buttons"):
                self._button("Stop", "Enter", "stop", "halt")
                self._button("Keep going", "Esc", "keep")
        with ui.dialog().props("transition-duration=0") as self.mark_dialog, ui.card():
            self._html("").content = "<p>What has happened?</p>"
            self.note = ui.input(placeholder="a note, then Enter").props("dark outlined").classes("w-full")
            self.mark_dialog.on("show", js_handler=f"() => runMethod({self.note.id}, 'focus', [])")
            with ui.element("div").classes("buttons"):
                for text in NOTES:
                    self._button(text, "", "note", text=text)
                self._button("Nothing", "Esc", "keep")

    # --- what the operator does -----------------------------------------------------------------------------------------------------

    def press(self, action: str, text: str, t_ns: int) -> None:
        """Do what was pressed, where that can be done now; what is so already is left so.

        Parameters
        ----------
        action : str
            What :meth:`rtevo.console.desk.Desk.act` knows, or of the page itself: "ask-stop", "ask-mark", "keep" (nothing is done), "note".
        text : str
            A note.
        t_ns : int
            Session time at which it was pressed; of a note, at which it was begun.
        """
        with self.client:
            if action == "ask-stop":
                self.ask_stop()
            elif action == "ask-mark":
                self.ask_mark()
            elif action == "note":
                self.do_mark(text, t_ns)
            else:
                self.stop_dialog.close()
                self.mark_dialog.close()
                if action in ("show", "veto") and text in {trial.name for trial in self.desk.view.trials.values()}:
                    self.desk.act(action, text, t_ns)
                elif action == "away" and not self.desk.over:
                    self.take_away(t_ns)
                elif action in self.possible:
                    self.desk.act(action)

    @property
    def possible(self) -> set[str]:
        """The actions that are possible now."""
        desk, state = self.desk, self.desk.state
        return {
            name
            for name, so in {
                "start": state == "ready",
                "pause": state in ("presenter", "trigger", "running"),
                "go_on": state in ("pausing", "paused", "held"),
                "seen": bool(desk.view.unseen),
                "accept": desk.acceptable,
                "again": state == "asked",
                "restart": state in ("asked", "held"),
                "admit": bool(desk.admittable),
                "correct": bool(desk.correctable),
                "stop": not desk.over,
                **{action: choice in desk.offered for action, choice in CHOICES.items()},
            }.items()
            if so
        }

    def take_away(self, t_ns: int) -> None:
        """Take away the image that was on the screen when the button was pressed; after a late press, no other image."""
        meant = self.desk.view.on_screen(t_ns / 1e9)
        if meant is not None or self.desk.clock.now_ns() - t_ns < LATE_NS * max(1.0, self.desk.clock.speed):
            self.desk.act("away", meant.name if meant is not None else "", t_ns)

    def ask_stop(self) -> None:
        """Ask whether the session shall really end."""
        if not self.desk.over:
            self._asked_s = time.monotonic()
            self.stop_dialog.open()
            self._draw_question()

    def _draw_question(self) -> None:
        """Show in Stop's question that the session continues; remove the question if nobody answers it, or the session has ended."""
        if not self.stop_dialog.value:
            return
        left_s = ANSWER_S - (time.monotonic() - self._asked_s)
        if self.desk.over or left_s <= 0:
            self.stop_dialog.close()
        else:
            self._set(self.goes_on, markup.goes_on(self.desk, left_s))

    def ask_mark(self) -> None:
        """Ask for a note; what counts is the moment of the question."""
        if not self.desk.over:
            self.note.value = ""
            self.mark_dialog.open()

    def do_mark(self, text: str, t_ns: int) -> None:
        """Record a note."""
        self.mark_dialog.close()
        if not self.desk.over:
            self.desk.act("mark", text.strip(), t_ns)

    # --- drawing --------------------------------------------------------------------------------------------------------------------

    def _set(self, element: ui.html, content: str) -> None:
        """Change an element only where it changes: the rest is not sent again."""
        if element.content != content:
            element.content = content

    async def tick(self) -> None:
        """Bring the page up to date, and see that the browser has the end."""
        self.draw()
        if self.desk.ends and not self.ended:
            with suppress(TimeoutError):
                await ui.run_javascript("document.body.classList.add('over')", timeout=REFRESH_S * 4)
                self.ended = True

    def draw(self) -> None:
        """Bring the page up to date."""
        desk = self.desk
        self._set(self.state, markup.state(desk))
        self._set(self.figures, markup.figures(desk))
        self._set(self.alarms, markup.alarms(desk))
        self._set(self.now, markup.now(desk))
        self._set(self.placement, markup.placement(desk.view) if desk.state == "asked" else "")
        self._set(self.upcoming, markup.upcoming(desk))
        self.upcoming.set_visibility(bool(self.upcoming.content))
        self._set(self.health, markup.health(desk))
        self._set(self.maps, markup.maps(desk))
        self._draw_buttons()
        self._draw_question()
        if self._changed != desk.changed:
            self._changed = desk.changed
            self._set(self.messages, markup.messages(desk.view))
            self._draw_generations()
            self._draw_charts()

    def _draw_buttons(self) -> None:
        state = self.desk.state
        self.start.set_visibility(state in ("starting", "ready"))
        self.start.set_enabled(state == "ready")
        self.go_on.set_visibility(state in ("pausing", "paused", "held"))
        asked = state == "asked"
        self.accept.set_visibility(self.desk.acceptable)
        self.admit.set_visibility(self.desk.admittable)
        self.correct.set_visibility(bool(self.desk.correctable))
        self.seen.set_visibility(bool(self.desk.view.unseen) and not self.desk.over)
        self.restart.set_visibility(asked or state == "held")
        for button in (self.again, self.placement):
            button.set_visibility(asked)
        self.generations.set_visibility(not asked)
        self.pause.set_visibility(not (self.go_on.visible or self.start.visible or asked))
        self.pause.set_enabled(state in ("presenter", "trigger", "running"))
        between, offered = state in ("between", "following"), self.desk.offered
        for choice, button in self.following.items():
            button.set_visibility(choice in offered)
        for button in (self.pause, self.mark, self.stop, self.away) if between else ():
            button.set_visibility(False)
        self.mark.set_enabled(not self.desk.over)
        self.stop.set_enabled(not self.desk.over and state != "stopping")
        self.away.set_enabled(not self.desk.over)  # whatever is on the screen by then: this page knows it half a second later

    def _draw_generations(self) -> None:
        view = self.desk.view
        limits = markup.span(view)
        if not view.trials and "none" not in self._drawn:
            with self.generations:
                self._drawn["none"] = self._html("dim")
            self._drawn["none"].content = "The first pictures are being painted."
        for number, trials in reversed(view.generations):
            if number not in self._drawn:
                with self.generations:
                    self._drawn[number] = self._html("generation")
                self._drawn[number].move(target_index=0)  # the newest is on top
                if "none" in self._drawn:
                    self._drawn["none"].content = ""
            self._set(self._drawn[number], markup.generation(view, number, trials, limits))

    def _draw_charts(self) -> None:
        for name, (chart, options) in self.charts.items():
            made = options(self.desk.view)
            if self._drawn.get(name) != made:
                self._drawn[name] = made
                chart.options.clear()
                chart.options.update(made)
                chart.update()

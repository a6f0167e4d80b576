"""The console's page: one object for each browser that looks at it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nicegui import events, ui

from rtevo.console import charts, markup
from rtevo.console.desk import Desk

__all__ = ["Page"]

REFRESH_S = 0.5
STYLE = Path(__file__).with_name("style.css")
# a page that lost its server looks for it every second, and is loaded again once that answers: there is no way back from an error page
COME_BACK = """
    socket.io.reconnectionDelay(500);
    socket.io.reconnectionDelayMax(1000);
    socket.off("connect_error");
    socket.on("connect_error", async (error) => {
        if (error.message !== "Implicit handshake failed") return;  // no server there: it is tried again
        while (!(await fetch("alive", {cache: "no-store"}).catch(() => ({}))).ok)
            await new Promise((then) => setTimeout(then, 500));
        location.reload();
    });
"""
NOTES = ("moved", "talked", "coughed", "pressed the bell", "eyes closed", "scanner stopped")


class Page:
    """What one browser shows, and the keys that are pressed in it.

    Parameters
    ----------
    desk : Desk
    """

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._drawn: dict[str | int, Any] = {}
        self.ended = False  # and the browser shows it
        self._marked_ns = 0
        self._changed = -1
        ui.add_css(STYLE.read_text(encoding="utf-8"))
        with ui.element("div").classes("page"):
            with ui.element("div").classes("bar"):
                self.state, self.figures = self._html(""), self._html("figures")
                self._make_buttons()
            self.alarms = self._html("alarms")
            with ui.element("div").classes("panel now"):
                self.now, self.messages = self._html(""), self._html("log")
            self.placement = self._html("panel generations")
            self.generations = ui.element("div").classes("panel generations")
            self.health = self._html("panel health")
            self._make_charts()
        self._make_dialogs()
        ui.keyboard(on_key=self._key, repeating=False)
        ui.timer(REFRESH_S, self.tick)
        ui.run_javascript(COME_BACK)
        self.draw()

    # --- parts ----------------------------------------------------------------------------------------------------------------------

    def _html(self, classes: str) -> ui.html:
        return ui.html("", sanitize=False).classes(classes)  # rtevo.console.markup escapes

    def _button(self, words: str, key: str, act: Callable[[], object], classes: str = "") -> ui.button:
        button = ui.button(on_click=lambda: act(), color=None).props("unelevated no-caps").classes(classes)
        button.on("mousedown", js_handler="(e) => e.preventDefault()")  # it does not take the keyboard
        with button:
            ui.html(f"{words}<kbd>{key}</kbd>", sanitize=False)
        return button

    def _make_buttons(self) -> None:
        with ui.element("div").classes("buttons"):
            self.start = self._button("Start", "S", self.do_start, "go")
            self.pause = self._button("Pause", "Space", self.do_pause)
            self.resume = self._button("Go on", "Space", self.do_pause, "go")
            self.mark = self._button("Mark", "M", self.ask_mark)
            self.accept = self._button("Accept", "Y", self.do_accept, "go")
            self.again = self._button("Next volumes", "N", lambda: self.do_decide("again"))
            self.restart = self._button("New run", "R", lambda: self.do_decide("restart"))
            self.admit = self._button("Let it in", "L", self.do_admit)
            self.correct = self._button("Correct start", "C", self.do_correct)
            self.stop = self._button("Stop", "X", self.ask_stop, "halt")

    def _make_charts(self) -> None:
        view = self.desk.view
        self.charts: dict[str, tuple[ui.echart, Callable[[Any], dict[str, Any]]]] = {}
        titles = {
            "fitness": ("Fitness by generation", "mean ± standard error", charts.fitness),
            "displacement": ("Framewise displacement, mm", "limits dashed", charts.displacement),
            "motion": ("Motion, mm", "limit: one voxel", charts.motion),
        }
        with ui.element("div").classes("charts"):
            for name, (title, note, options) in titles.items():
                with ui.element("div").classes("panel"):
                    self._html("").content = f"<h2>{title}<span>{note}</span></h2>"
                    if name == "fitness" and view.blinded:
                        self._html("hidden-scores").content = "Scores are hidden: this session is blinded."
                    else:
                        self.charts[name] = (ui.echart(options(view)), options)

    def _make_dialogs(self) -> None:
        with ui.dialog().props("transition-duration=0") as self.stop_dialog, ui.card():
            self._html("").content = "<p>End the session now? The image is taken away; everything is saved.</p>"
            with ui.element("div").classes("buttons"):
                self._button("Stop", "Enter", self.do_stop, "halt")
                self._button("Keep going", "Esc", self.stop_dialog.close)
        with ui.dialog().props("transition-duration=0") as self.mark_dialog, ui.card():
            self._html("").content = "<p>What has happened?</p>"
            self.note = ui.input(placeholder="a note, then Enter").props("dark outlined").classes("w-full")
            self.note.on("keydown.enter", lambda: self.do_mark(self.note.value))
            self.note.on("keydown.escape", self.mark_dialog.close)
            self.mark_dialog.on("show", js_handler=f"() => runMethod({self.note.id}, 'focus', [])")
            with ui.element("div").classes("buttons"):
                for text in NOTES:
                    ui.button(text, on_click=lambda text=text: self.do_mark(text), color=None).props("unelevated no-caps")

    # --- what the operator does -----------------------------------------------------------------------------------------------------

    def do_start(self) -> None:
        """Let the session begin."""
        if self.desk.state == "ready":
            self.desk.act("start")

    def do_pause(self) -> None:
        """Pause, or go on."""
        if self.desk.state in ("presenter", "trigger", "running"):
            self.desk.act("pause")
        elif self.desk.state in ("pausing", "paused"):
            self.desk.act("resume")

    def do_accept(self) -> None:
        """Accept a doubtful placement."""
        if self.desk.acceptable:
            self.desk.act("accept")

    def do_decide(self, action: str) -> None:
        """Have the next volumes tried, or the scanner's run begun anew, where the decoder could not be placed."""
        if self.desk.state == "asked":
            self.desk.act(action)

    def do_admit(self) -> None:
        """Let the presenter in that waits, in place of the session's own."""
        if self.desk.admittable:
            self.desk.act("admit")

    def do_correct(self) -> None:
        """Take the start that the volumes say, where the trigger was not the first volume's."""
        if self.desk.correctable:
            self.desk.act("correct")

    def ask_stop(self) -> None:
        """Ask whether the session shall really end."""
        if not self.desk.over:
            self.stop_dialog.open()

    def do_stop(self) -> None:
        """End the session."""
        self.stop_dialog.close()
        self.desk.act("stop")

    def ask_mark(self) -> None:
        """Ask for a note; what counts is the moment of the question."""
        if not self.desk.over:
            self._marked_ns, self.note.value = self.desk.clock.now_ns(), ""
            self.mark_dialog.open()

    def do_mark(self, text: str) -> None:
        """Record a note."""
        if self.mark_dialog.value:
            self.mark_dialog.close()
            self.desk.act("mark", text.strip(), self._marked_ns)

    def _key(self, event: events.KeyEventArguments) -> None:
        modifiers = event.modifiers
        if not event.action.keydown or modifiers.ctrl or modifiers.alt or modifiers.meta or self.mark_dialog.value:
            return
        if self.stop_dialog.value:
            if event.key == "Enter":
                self.do_stop()
            elif event.key == "Escape":
                self.stop_dialog.close()
            return
        keys: dict[str, Callable[[], object]] = {"s": self.do_start, " ": self.do_pause, "m": self.ask_mark, "x": self.ask_stop}
        keys |= {"l": self.do_admit, "c": self.do_correct}
        keys |= {"y": self.do_accept, "n": lambda: self.do_decide("again"), "r": lambda: self.do_decide("restart")}
        if act := keys.get(str(event.key.name).lower()):
            act()

    # --- drawing --------------------------------------------------------------------------------------------------------------------

    def _set(self, element: ui.html, content: str) -> None:
        """Change an element only where it changes: the rest is not sent again."""
        if element.content != content:
            element.content = content

    async def tick(self) -> None:
        """Bring the page up to date, and see that the browser has the end."""
        self.draw()
        if self.desk.over and not self.ended:
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
        self._set(self.health, markup.health(desk))
        self._draw_buttons()
        if self._changed != desk.changed:
            self._changed = desk.changed
            self._set(self.messages, markup.messages(desk.view))
            self._draw_generations()
            self._draw_charts()

    def _draw_buttons(self) -> None:
        state = self.desk.state
        self.start.set_visibility(state in ("starting", "ready"))
        self.start.set_enabled(state == "ready")
        self.resume.set_visibility(state in ("pausing", "paused"))
        asked = state == "asked"
        self.accept.set_visibility(self.desk.acceptable)
        self.admit.set_visibility(self.desk.admittable)
        self.correct.set_visibility(bool(self.desk.correctable))
        for button in (self.again, self.restart, self.placement):
            button.set_visibility(asked)
        self.generations.set_visibility(not asked)
        self.pause.set_visibility(not (self.resume.visible or self.start.visible or asked))
        self.pause.set_enabled(state in ("presenter", "trigger", "running"))
        self.mark.set_enabled(not self.desk.over)
        self.stop.set_enabled(not self.desk.over and state != "stopping")

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

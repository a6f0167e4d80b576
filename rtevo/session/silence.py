"""Whether the scanner is heard, judged by the supervisor from the shared words: it works also where a stage is busy or hangs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rtevo.session.clock import Clock
from rtevo.session.plan import MEASURED, Plan
from rtevo.session.pulses import Heard

__all__ = ["ALONE_S", "LEAST_S", "Answers", "News", "Silence"]

LEAST_S = 5.0  # of silence, real time: a shorter one is no alarm at any repetition time
UNANSWERED = 5  # images in a row without an answer are an alarm
_ANSWERS = {
    "ratings": "rating: see that the participant is awake and well, has the buttons, and that [presentation] rating_keys are theirs",
    "physiology": "response: see that the sensor is on, its electrodes hold, and its program sends",
}
ALONE_S = 60.0  # of session time, after an alarm: so long a session that nobody attends waits for volumes


@dataclass(frozen=True)
class News:
    """What is to be said.

    Parameters
    ----------
    text : str
    alarm : bool
        It begins, and somebody must act; else it is over.
    hold : bool
        Images cannot be scored any more.
    """

    text: str
    alarm: bool = True
    hold: bool = False


class Answers:
    """Looks whether the participant answers at all, where the images are judged by that.

    Parameters
    ----------
    condition : str
        One of :data:`rtevo.session.plan.MEASURED`.
    """

    def __init__(self, condition: str) -> None:
        self._words = _ANSWERS[condition]
        self._missed = 0

    def take(self, value: float) -> News | None:
        """Take note of an image's rating or response, NaN: none; returns what is to be said."""
        missed, self._missed = self._missed, self._missed + 1 if math.isnan(value) else 0
        if self._missed == UNANSWERED:
            return News(f"the last {UNANSWERED} images have no {self._words}")
        if missed >= UNANSWERED and not self._missed:
            return News(f"images have answers again, after {missed} without", alarm=False)
        return None


class Silence:
    """Looks whether trigger and volumes come as they should.

    Parameters
    ----------
    plan : Plan
    clock : Clock
        Its words are looked at; none is written.

    Attributes
    ----------
    kind : str
        What is not heard now; see :meth:`rtevo.session.pulses.Heard.silence`. "series": another series comes in instead.
    since_s : float
        Session time of the alarm.
    """

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self._plan, self._clock = plan, clock
        self._needed = plan.condition not in MEASURED
        self._elsewhere, self._came = "", 0  # series that began after the run's last volume; how many had come of the run then
        self.kind, self.since_s = "", math.nan

    def elsewhere(self, series: str) -> None:
        """Take note that volumes of another series than the run's come in, and began after the run's last one."""
        self._elsewhere, self._came = series, self._clock.get("volume_count")

    @property
    def heard(self) -> Heard:
        """What the shared words say."""
        get = self._clock.get
        seconds = {name: get(f"{name[:-2]}_ns") / 1e9 or math.nan for name in ("trigger_s", "volume_s", "early_s")}
        return Heard(**seconds, delay_s=get("delay_ns") / 1e9, unusable=get("unusable"))

    @property
    def unheard(self) -> bool:
        """Whether images that are shown now cannot be scored."""
        return self._needed and self.kind in ("volumes", "series", "usable")

    def look(self, now_s: float) -> News | None:
        """Judge; gives what has changed.

        Parameters
        ----------
        now_s : float
            Session time.
        """
        config, heard = self._plan.config, self.heard
        dummies_s = config.presentation.dummy_triggers * self._plan.tr_s if math.isnan(heard.trigger_s) else 0.0
        least_s = LEAST_S * max(1.0, config.session.speed) + dummies_s
        kind = heard.silence(now_s, self._plan.tr_s, least_s)
        if self._clock.get("volume_count") > self._came:  # the run goes on
            self._elsewhere = ""
        if kind == "volumes" and self._elsewhere:
            kind = "series"
        before, self.kind = self.kind, kind
        if kind == before:
            return None
        if not kind:
            return News(f"{_BACK[before]} after {now_s - self.since_s:.0f} s", alarm=False)
        self.since_s = now_s
        hold = self.unheard and bool(self._clock.get("placed"))
        held = " The participant sees fixation until you press Go on." * hold
        return News(self._words(kind, heard, now_s) + held, hold=hold)

    def _words(self, kind: str, heard: Heard, now_s: float) -> str:
        """Say what is not heard, since when, and what to do."""
        if kind == "trigger":
            return (
                f"volumes come in, the first {now_s - heard.early_s:.0f} s ago, but no trigger has: see to the trigger's cable and box at "
                "the stimulus PC, that its window has the keyboard, and [presentation] trigger_key; then begin the scanner's run anew"
            )
        if kind == "usable":
            return (
                f"the last {heard.unusable} volumes could not be aligned: see whether they show this participant's head (series, field of "
                "view, position); then begin the scanner's run anew"
            )
        if math.isnan(heard.volume_s):
            text = f"the trigger came {now_s - heard.trigger_s:.1f} s ago, but no volume has"
        else:
            usual = f", {heard.delay_s:.1f} s after its end at most" if heard.delay_s > 0 else ""
            text = f"no volume has come in for {now_s - heard.volume_s:.1f} s; {self._clock.get('volume_count')} had before{usual}"
        if kind == "series":
            return f"{text}. {self._elsewhere} comes in instead: was the run started again? Then begin it anew here too (New run), or stop"
        where = {"folder": "[acquisition] folder", "dicom": "[acquisition] port and ae_title", "push": "the script that pushes them"}
        check = where[self._plan.config.acquisition.delivery]
        return f"{text}: see whether the scanner still runs and exports, the network, {check} and series"


_BACK = {
    "trigger": "the trigger has come",
    "volumes": "volumes come in again",
    "series": "volumes come in again",
    "usable": "volumes can be aligned again",
}

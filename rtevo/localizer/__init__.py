"""A localizer: pictures of known categories, shown in blocks or one by one with a task, for a decoder to be fitted to.

It is a kind of session: volumes, presenter, record and console are the same; where images come from is a schedule that is fixed before
the first volume. ``pictures``: the site's folder; ``order``: which category comes when; ``schedule``: which picture, for how long, with
what after it; ``responses``: what the presses were. The command is :mod:`rtevo.localizer.__main__`.
"""

from rtevo.localizer.order import adjacent, balanced
from rtevo.localizer.pictures import BUILT_IN, MARK, Picture, read_folder
from rtevo.localizer.responses import EARLIEST_S, Task, judge
from rtevo.localizer.schedule import TAIL_S, Trial, length_s, make_schedule

__all__ = [
    "BUILT_IN",
    "EARLIEST_S",
    "MARK",
    "TAIL_S",
    "Picture",
    "Task",
    "Trial",
    "adjacent",
    "balanced",
    "judge",
    "length_s",
    "make_schedule",
    "read_folder",
]

"""A localizer: pictures of known categories, shown in blocks or singly with a task, as training data for a decoder.

It is a kind of session: volumes, presenter, record and console are the same, but the images follow a schedule that is fixed before the
first volume. ``pictures``: the site's folder; ``order``: the order of categories; ``schedule``: pictures, durations and fixations;
``responses``: hits, misses and false alarms. The command is :mod:`rtevo.localizer.__main__`.
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

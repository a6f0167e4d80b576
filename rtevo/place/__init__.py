"""Placement of the decoder on today's head: one rigid transform between two volumes on any grids, found from the volumes, and judged.

>>> placement = place(reference, grid, today, today_grid, weight=weight)   # (X, Y, Z) and Grid each; |weight| on the decoder's grid
>>> placement.verdict, placement.reasons                                    # good, doubtful or bad, and sentences for the operator
>>> placement.matrix                                                        # decoder's world to today's world, RAS+ mm

:func:`judge` measures an external transform in the same way, and :func:`draw_placement` shows either. Method, sources and accuracy:
``docs/placement.md``.
"""

from rtevo.place.figure import draw_placement
from rtevo.place.placement import Placement, Verdict, inside, judge, place, warm_up

__all__ = ["Placement", "Verdict", "draw_placement", "inside", "judge", "place", "warm_up"]

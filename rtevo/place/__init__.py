"""Where the decoder's head lies today: one rigid transform between two volumes of any grids, found from the volumes, and judged.

>>> placement = place(reference, grid, today, today_grid, weight=weight)   # (X, Y, Z) and Grid each; |weight| on the decoder's grid
>>> placement.verdict, placement.reasons                                    # good, doubtful or bad, and sentences for the operator
>>> placement.matrix                                                        # decoder's world to today's world, RAS+ mm

:func:`judge` measures a transform that came from elsewhere in the same way, and :func:`draw_placement` shows either. How it works, from
whom, and how good it is: ``docs/placement.md``.
"""

from rtevo.place.figure import draw_placement
from rtevo.place.placement import Placement, Verdict, inside, judge, place, warm_up

__all__ = ["Placement", "Verdict", "draw_placement", "inside", "judge", "place", "warm_up"]

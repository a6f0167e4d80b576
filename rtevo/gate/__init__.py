"""The gate: no picture reaches the participant without a verdict.

Every picture is judged in the process that paints it: its re-encoding is compared with the avoided embeddings, and filters in processes of
their own (:class:`Apart`) judge it by a deadline: a CLIP safety checker, and those that other packages offer as entry points
``rtevo.filters``. A filter that fails, hangs or is late refuses. The verdict lies in the same slot as the pixels, with their SHA-256.
"""

from rtevo.gate.apart import Apart
from rtevo.gate.filters import ENTRY_POINTS, Filter, Gate, check_gate, make_gate, marked_picture
from rtevo.gate.verdict import Finding, Verdict

__all__ = ["ENTRY_POINTS", "Apart", "Filter", "Finding", "Gate", "Verdict", "check_gate", "make_gate", "marked_picture"]

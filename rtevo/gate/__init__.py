from rtevo.gate.apart import Apart
from rtevo.gate.filters import ENTRY_POINTS, Filter, Gate, check_gate, make_gate, marked_picture
from rtevo.gate.verdict import Finding, Verdict

__all__ = ["ENTRY_POINTS", "Apart", "Filter", "Finding", "Gate", "Verdict", "check_gate", "make_gate", "marked_picture"]

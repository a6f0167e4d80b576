"""Replaying a recorded session: its evolution and its decoding, to resume or to recompute it."""

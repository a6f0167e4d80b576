"""How a recorded session is gone through again: its evolution, its decoding, taking it up, computing it anew."""

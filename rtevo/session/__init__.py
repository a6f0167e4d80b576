"""A session: its plan, rings and clock, the checks before it, the view of each process, and its course."""

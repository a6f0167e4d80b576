"""The processes of a session: one file for each, and their table in :mod:`rtevo.stages.table`."""

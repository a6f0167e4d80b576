"""What each process of a session does: one file a process, and :mod:`rtevo.stages.table` of them all."""

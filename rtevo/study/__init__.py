"""A study: participants, visits, runs and arms in one file, drawn and sealed once, and what was run of it.

``file`` reads ``study.toml``; ``allocation`` draws the arms; ``ledger`` is the append-only log of what happened; ``loading`` is the study,
read; ``next`` starts what comes next for a participant (``settings`` fills its session file in, ``start`` knows how each kind of run is
started, ``counting`` whether it counts); ``unseal`` opens the arms, ``export`` writes all of it as one BIDS data set. Nothing shows an arm
before a study is unsealed: docs/study.md says what is sealed how.

``analysis`` says what a study found (one summary a participant, a randomisation test), ``mixed`` is the model beside it; ``group`` asks
them of a study, ``report``, ``figures`` and ``checklist`` write its page. ``power`` simulates whole studies before there is one.
"""

from rtevo.study.loading import Study, StudyRun, load

__all__ = ["Study", "StudyRun", "load"]

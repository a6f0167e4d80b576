"""A campaign of faults: short sessions whose deliveries go wrong, whose processes are signalled, whose disks fill up.

``python -m bench.campaign`` runs them. A session of it is a kind and a seed; what goes wrong follows from these
(:mod:`bench.campaign.scenarios`). A sender of its own (:mod:`bench.campaign.sender`) stands in for the scanner and keeps a journal of what
it wrote, when, and of which pixels; :mod:`bench.campaign.check` counts from that journal, not from the session's own record.
"""

"""A study: participants, visits, runs and arms; what comes of them as a group, and how many are needed."""

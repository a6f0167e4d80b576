"""Stands in for PsychoPy where only its parallel port is wanted."""

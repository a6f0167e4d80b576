"""rtevo: real-time fMRI closed loop that evolves AI-generated images from the brain's responses."""

__version__ = "0.1.0"

"""The built-in model: a small unCLIP trained on emoji, part of the package (see its ``README.md``; made by ``build/tiny_unclip.py``)."""

from __future__ import annotations

from pathlib import Path

__all__ = ["TINY_LATENT_SPACE", "TINY_UNCLIP"]

TINY_UNCLIP = Path(__file__).resolve().parents[1] / "assets" / "tiny-unclip"
"""Folder of the pipeline."""

TINY_LATENT_SPACE = TINY_UNCLIP / "latent_space.npz"
"""Principal components of the embeddings of all emoji, the first ones first."""

"""A simulated participant who prefers a concept: pictures that look, to its own eyes, like a spider, say.

Its eyes are a small convolutional network, trained apart from everything that paints, decodes or evolves (``build/tiny_unclip.py``, stage
``judge``) to tell emoji apart and to read the words of their CLDR names and keywords. It runs in NumPy, in about a millisecond.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rtevo.errors import ConfigError

__all__ = ["ConceptPreference", "concepts"]

EYE = Path(__file__).resolve().parents[1] / "assets" / "participant-eye.npz"
"""Weights of the network, and names, keywords and mean embeddings of all emoji."""

SIDE = 64
_LAYERS = 4  # of convolution, 3 x 3, stride 2
_MOST = 3.0  # preferences approach this, either way

Embedding = NDArray[np.float32]


@cache
def _eye() -> dict[str, NDArray[Any]]:
    """Read the network and what it knows; networks are stored in half precision."""
    with np.load(EYE, allow_pickle=False) as stored:
        return {name: stored[name].astype(np.float32) if stored[name].dtype.kind == "f" else stored[name] for name in stored.files}


def concepts() -> list[str]:
    """All names that a participant can prefer: of single emoji; any of their keywords ("fruit", "insect") is a concept, too."""
    return sorted(str(name) for name in _eye()["names"])


def see(pixels: NDArray[np.uint8]) -> Embedding:
    """Look at a picture.

    Parameters
    ----------
    pixels : ndarray, uint8 (H, W, 3)

    Returns
    -------
    ndarray, float32 (64,)
        Embedding, of length 1.
    """
    eye = _eye()
    if pixels.shape[:2] != (SIDE, SIDE):
        pixels = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX))
    x = pixels.astype(np.float32) / np.float32(127.5) - 1
    windows: Any = np.lib.stride_tricks.sliding_window_view  # some versions' types do not know several axes
    for i in range(_LAYERS):
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        patches = windows(padded, (3, 3), (0, 1))[::2, ::2]  # (h, w, c, 3, 3)
        x = np.maximum(np.tensordot(patches, eye[f"weight_{i}"], axes=((2, 3, 4), (1, 2, 3))) + eye[f"bias_{i}"], 0)
    found = eye[f"weight_{_LAYERS}"] @ x.transpose(2, 0, 1).ravel() + eye[f"bias_{_LAYERS}"]
    return np.asarray(found / np.linalg.norm(found), np.float32)


class ConceptPreference:
    """Likes pictures that look like a concept.

    The preference is the cosine between the embedding of the picture and the mean embedding of the concept's pictures, standardised to
    mean 0 and standard deviation 1 over all emoji, and levelling off towards 3 (hyperbolic tangent).

    Parameters
    ----------
    concept : str
        Name of an emoji ("spider", "flag: sweden"), or a word that is a keyword of some ("insect", "fruit").

    Raises
    ------
    ConfigError
        No emoji is called so; the message has names that come close.
    """

    def __init__(self, concept: str) -> None:
        eye = _eye()
        members = _members(concept)
        mean = eye["prototypes"][members].mean(axis=0)
        self.concept = concept
        self.pictures = [str(eye["names"][i]) for i in members]
        self._target = mean / np.linalg.norm(mean)
        alike = eye["prototypes"] @ self._target
        self._middle, self._spread = float(alike.mean()), float(alike.std())

    def __call__(self, pixels: NDArray[np.uint8]) -> float:
        """Return how much a picture is liked."""
        standard = (float(see(pixels) @ self._target) - self._middle) / self._spread
        return float(_MOST * np.tanh(standard / _MOST))

    def settings(self) -> dict[str, Any]:
        """Return the preference's description."""
        return {"kind": "concept", "concept": self.concept, "pictures": self.pictures}


def _members(concept: str) -> list[int]:
    """Numbers of the emoji that a concept means: the one of that name, or all that have it among their keywords."""
    names, keywords = _eye()["names"], _eye()["keywords"]
    wanted = concept.strip().lower()
    members = [int(i) for i in np.flatnonzero(names == wanted)]
    if not members:
        members = [i for i, words in enumerate(keywords) if wanted in str(words).split()]
    if not members:
        words = sorted({word for text in keywords for word in str(text).split()})
        near = difflib.get_close_matches(wanted, {*concepts(), *words}, n=5, cutoff=0.5)
        near += [name for name in concepts() if wanted and wanted in name and name not in near][:5]
        hint = f"; close: {', '.join(near)}" if near else ""
        raise ConfigError(
            f"[simulation] prefers: expected the name or a keyword of an emoji, got {concept!r}{hint} (--prefers list: all names)"
        )
    return members

"""Making a latent space: principal components of embeddings, and a figure of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rtevo.errors import DataError
from rtevo.latent.space import LatentSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "fit"]

STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # standard deviations along a component that are painted


def fit(embeddings: ArrayLike, components: int, whitened: bool = True) -> tuple[LatentSpace, NDArray[np.float64]]:
    """Fit a latent space.

    Parameters
    ----------
    embeddings : array-like of float, (n, e)
        Of images like those that are to be painted.
    components : int
        Latent dimensions, fewer than n and at most e.
    whitened : bool
        One latent unit is a standard deviation of `embeddings` along its component; else an embedding unit.

    Returns
    -------
    space : LatentSpace
    explained : ndarray, float64 (components,)
        Share of the variance along each component.

    Raises
    ------
    DataError
        There are too few embeddings, or they are not finite, or all alike along a requested component.
    """
    rows = np.asarray(embeddings, np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise DataError(f"embeddings: expected finite numbers (n, e), got shape {rows.shape}")
    if not 1 <= components <= min(len(rows) - 1, rows.shape[1]):
        raise DataError(
            f"components: expected 1 to {min(len(rows) - 1, rows.shape[1])} for {len(rows)} embeddings of {rows.shape[1]} numbers "
            f"(fewer than the embeddings, at most their size), got {components}"
        )
    from sklearn.decomposition import PCA

    found = PCA(components, svd_solver="full").fit(rows)
    sd = np.sqrt(found.explained_variance_)
    if sd[-1] < 1e-6 * max(sd[0], 1e-300):
        raise DataError(f"components: the embeddings differ along {int((sd > 1e-6 * sd[0]).sum())} directions only, asked for {components}")
    space = LatentSpace(
        found.mean_.astype(np.float32), found.components_.astype(np.float32),
        sd.astype(np.float32) if whitened else np.ones(0, np.float32), sd.astype(np.float32),
    )  # fmt: skip
    return space, np.asarray(found.explained_variance_ratio_, np.float64)


def draw(
    space: LatentSpace, explained: NDArray[np.float64], paint: Callable[[NDArray[np.float32]], list[NDArray[np.uint8]]], shown: int = 6
) -> Figure:
    """Draw the variance that components explain, and pictures along the first of them.

    Parameters
    ----------
    space : LatentSpace
        With standard deviations.
    explained : ndarray, float (d,)
        Share of the variance along each component.
    paint : callable
        From embeddings (n, e) to n pictures, uint8 (H, W, 3).
    shown : int
        Components whose pictures are drawn.
    """
    from matplotlib.figure import Figure

    shown = min(shown, space.latent_size)
    latents = np.zeros((shown, len(STEPS), space.latent_size), np.float32)
    for k in range(shown):
        latents[k, :, k] = np.array(STEPS) * space.sd[k] / space.scale[k]
    pictures = paint(space.to_embedding(latents.reshape(-1, space.latent_size)))
    figure = Figure(figsize=(11, 1.1 * shown + 1.2), dpi=110, facecolor="white")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    left, right = parts
    ax = left.subplots()
    left.subplots_adjust(left=0.16, right=0.95, bottom=0.09, top=0.93)
    numbers = np.arange(1, len(explained) + 1)
    ax.bar(numbers, 100 * explained, color="#0b6e75", width=0.8, label="each")
    ax.plot(numbers, 100 * np.cumsum(explained), color="#c2571a", label="together")
    ax.set(xlabel="component", ylabel="variance explained, %", ylim=(0, 105))
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(f"{len(explained)} components explain {100 * explained.sum():.1f}%", loc="left", fontsize=10)
    axes = right.subplots(shown, len(STEPS), squeeze=False)
    right.subplots_adjust(left=0.1, right=0.99, bottom=0.02, top=0.93, wspace=0.06, hspace=0.08)
    for ax, picture, place in zip(axes.flat, pictures, range(shown * len(STEPS)), strict=True):
        ax.imshow(picture)
        ax.set_axis_off()
        if place < len(STEPS):
            ax.set_title(f"{STEPS[place]:+g} SD" if STEPS[place] else "mean", fontsize=8)
        if place % len(STEPS) == 0:
            ax.text(-0.12, 0.5, f"{place // len(STEPS) + 1}", transform=ax.transAxes, ha="right", va="center", fontsize=8)
    right.suptitle("pictures along the components", x=0.1, y=0.995, ha="left", fontsize=10)
    return figure

"""The noise of imported maps: of each voxel, and of the map's projection, from a run of the same head.

With the voxels' noise a session scores from its first image on, without a baseline; with the noise of its projection, its unit, a map's
scores can be added to those of others. The run may show anything: what drift and motion do not explain counts as noise, responses too,
which makes it a little too large and never too small.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.elsewhere import in_order, sampled, sentence
from rtevo.decode.folder import Decoder, write_decoder
from rtevo.decode.recorded import nuisance_of, reference_of, series_of, terms_of
from rtevo.decode.shared import unit_map
from rtevo.errors import DecoderError, GeometryError
from rtevo.kernels.smooth import smooth
from rtevo.place import Placement, Verdict, place
from rtevo.realign.series import Run

__all__ = ["add_noise", "noise_of"]

Array = NDArray[np.float64]


def noise_of(decoder: Decoder, run: Run, fwhm_mm: float) -> tuple[Array, float, int, Placement | None]:
    """Estimate the noise of a decoder's voxels and of its map's projection.

    Parameters
    ----------
    decoder : Decoder
    run : Run
        Of the same head, on any grid.
    fwhm_mm : float
        Smoothing of the sessions to come.

    Returns
    -------
    sd : ndarray, float64 (X, Y, Z)
        In the reference's units, 0 outside the mask.
    unit : float
        Noise of the projection, in units of a voxel's.
    volumes : int
        That it rests on.
    placement : Placement or None
        Of the decoder's reference on the run; None where they share a grid.

    Raises
    ------
    GeometryError
        The decoder does not lie on the run's head.
    DecoderError
        Voxels do not vary, or show no signal.
    """
    run, found, frames = in_order(run, decoder.grid), None, None
    if decoder.grid.difference(run.grid):
        own = reference_of(run)
        found = place(decoder.reference, decoder.grid, own, run.grid, weight=np.abs(decoder.weights))
        if found.verdict is Verdict.BAD:
            raise GeometryError(f"--noise: expected a run of the reference's head: {sentence(found)}")
        frames = sampled(run, own, found, decoder.grid, decoder.mask)
    series = series_of(run, decoder.reference, decoder.mask, fwhm_mm, frames, decoder.grid)
    fit = nuisance_of(series, run.tr_s)
    reference = smooth(decoder.reference, decoder.grid.voxel_size_mm, fwhm_mm)[decoder.mask]
    own_sd, level = fit.sd(), series.values.mean(axis=0)
    both = (level > 0) & (reference > 0)
    if not both.any() or not (own_sd > 0).any():
        raise DecoderError("--noise: expected voxels of the mask with signal and noise in the run, found none")
    sd = np.zeros(decoder.mask.shape)
    sd[decoder.mask] = own_sd / float(np.median(level[both] / reference[both]))
    projected, per_voxel = unit_map(replace(decoder, noise_sd=sd.astype(np.float32)))
    factors = np.divide(projected, own_sd, out=np.zeros_like(projected), where=(own_sd > 0) & (per_voxel > 0))
    left = [float((factors * fit.residual(terms, row)).sum()) for terms, row in zip(terms_of(series, run.tr_s), series.values, strict=True)]
    return sd, float(np.std(left)), len(left), found


def add_noise(folder: Path, decoder: Decoder, run: Run, fwhm_mm: float, source: Path) -> str:
    """Write an imported decoder again with its noise and unit; return what to tell the user."""
    sd, unit, volumes, found = noise_of(decoder, run, fwhm_mm)
    if not unit > 0:
        raise DecoderError("--noise: expected the map's projection to vary in the run, found none of it")
    settings: dict[str, Any] = {**decoder.settings, "unit": unit, "fwhm_mm": fwhm_mm, "noise": {"run": str(source), "volumes": volumes}}
    write_decoder(folder, decoder.name, decoder.reference, decoder.mask, decoder.weights, decoder.grid.affine, settings, sd)
    where = "" if found is None else f"; {sentence(found)}"
    return (
        f"noise of {int((sd > 0).sum())} voxels and of the projection ({unit:.3g} of a voxel's) from {volumes} volumes of {source}{where}\n"
    )

"""What pulse and respiration are worth to scores: as they come and in one series, against RETROICOR of every voxel afterwards.

``python bench/bench_physio.py [--seeds N] [--jobs N] [--out FILE]`` simulates runs of six minutes with a heart that does not beat evenly
and breaths that differ (:mod:`rtevo.simulate.body`: no sum of sines), voxels that pulse and move with coefficients and delays of their own,
slices that are measured one after the other, interleaved or several at once. The map's series is taken apart by the session's own filter
(:class:`rtevo.decode.deconvolve.Deconvolver`), with what of the physiology was known by the end of each volume. The peer knows the whole
run: each voxel is fitted, by least squares, on the phases at the times of its own slice (Glover et al. 2000), from beats found afterwards,
and the cleaned voxels go through the same filter.

Printed: correlation of the scores with the truth, area under the curve of images above against below the median, and what is left of the
series' standard deviation besides responses (1 / it is the series' tSNR, relative to without).
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, find_peaks, sosfiltfilt
from scipy.stats import rankdata
from threadpoolctl import threadpool_limits

from rtevo.decode.deconvolve import Deconvolver
from rtevo.decode.grid import Grid
from rtevo.decode.hrf import response
from rtevo.physio import Sensor, sizes
from rtevo.physio.regressors import Physiology, moments
from rtevo.simulate.body import Body

Array = NDArray[np.float64]
MINUTES, SLICES, VOXELS = 6.0, 24, 720
CADENCE_S, IMAGE_S = 4.0, 3.0
RATE_HZ = 50.0  # of the sensors
BOTH = (Sensor.CARDIAC, Sensor.RESPIRATORY)
CAUSAL = {"retroicor": ("retroicor",), "rvt, hrv": ("rvt", "hrv"), "all": ("retroicor", "rvt", "hrv")}


@dataclass(frozen=True)
class Protocol:
    """How volumes are measured."""

    name: str
    tr_s: float
    together: int
    local: bool = False  # the map lies in a few slices

    def slice_s(self) -> Array:
        """When each slice is measured, s from the volume's start."""
        groups = SLICES // self.together
        order = np.concatenate([np.arange(0, groups, 2), np.arange(1, groups, 2)])
        times = np.empty(groups)
        times[order] = np.arange(groups) * self.tr_s / groups
        return np.tile(times, self.together)


PROTOCOLS = (
    Protocol("TR 0.8 s, 4 slices at once", 0.8, 4),
    Protocol("TR 1.5 s, interleaved", 1.5, 1),
    Protocol("TR 1.5 s, 4 slices' map", 1.5, 1, local=True),
    Protocol("TR 2 s, interleaved", 2.0, 1),
    Protocol("TR 2 s, 2 slices at once", 2.0, 2),
)


class Run:
    """A simulated run: voxels, and what the sensors saw."""

    def __init__(self, protocol: Protocol, seed: int) -> None:
        rng = np.random.default_rng([seed, PROTOCOLS.index(protocol)])
        self.protocol, tr_s = protocol, protocol.tr_s
        self.body = Body(rng, MINUTES * 60 + 20)
        self.volumes = round(MINUTES * 60 / tr_s)
        self.onsets = np.arange(8.0, MINUTES * 60 - 14, CADENCE_S)
        self.truth = 1.0 + rng.standard_normal(len(self.onsets))
        slices = np.sort(rng.integers(10, 14, VOXELS) if protocol.local else rng.integers(0, SLICES, VOXELS))
        self.slices, self.slice_s = slices, protocol.slice_s()
        self.weights = rng.standard_normal(VOXELS)
        self.weights /= np.linalg.norm(self.weights)
        starts = np.arange(self.volumes) * tr_s
        lag_s, width = rng.normal(0.5, 0.7), rng.uniform(0.9, 1.15)
        at = (starts[:, np.newaxis] + tr_s / 2 - lag_s - self.onsets) / width
        task = response(at.ravel(), IMAGE_S).reshape(at.shape) @ self.truth
        self.voxels = self._noise(rng, starts) + np.multiply.outer(task, self.weights)
        self.series = self.voxels @ self.weights
        self.clean = task

    def _noise(self, rng: np.random.Generator, starts: Array) -> Array:
        """Noise of all voxels, float64 (volumes, voxels): thermal, a walk, and the body's, of which a part is alike in the map."""
        n = len(self.slices)
        times = starts[:, np.newaxis] + self.slice_s[self.slices]
        near = 0.9 * self.weights * np.sqrt(n)  # physiology that looks like the map, as at vessels and edges

        def strengths(share: float) -> Array:
            return np.asarray(share * (0.06 * near + rng.lognormal(-0.5, 0.8, n) * rng.choice([-1, 1], n)), np.float64)

        depth = self.slices / SLICES - 0.5
        delay_s = 0.08 * depth + 0.03 * rng.standard_normal(n)
        tissue = self.body.tissue(times.ravel(), np.broadcast_to(delay_s, times.shape).ravel()).reshape(times.shape)
        chest = self.body.chest(times - (0.1 + 0.1 * depth))
        _, _, air, heart = self.body.effects(starts + self.protocol.tr_s / 2)
        noise = rng.standard_normal((len(starts), n)) * 0.8
        noise[1:] += 0.3 * noise[:-1]
        noise += np.cumsum(rng.standard_normal((len(starts), n)) * 0.03 * np.sqrt(self.protocol.tr_s), axis=0)
        for each, share in ((tissue, 1.0), (chest, 0.8)):
            noise += (each - each.mean(axis=0)) / each.std() * strengths(share)
        return noise + np.multiply.outer(air, strengths(0.4)) + np.multiply.outer(heart, strengths(0.3))

    def sensors(self) -> tuple[Array, Array, Array]:
        """Times, pulse and belt as they are sampled."""
        rng = np.random.default_rng(self.volumes)
        t = np.arange(self.body.begins_s, MINUTES * 60, 1 / RATE_HZ)
        quantised = np.rint(400 * (self.body.pulse(t) + 0.03 * rng.standard_normal(len(t)))) + 2048
        return t, quantised, np.rint(900 * (self.body.belt(t) + 0.01 * rng.standard_normal(len(t)))) + 1000


def causal_terms(run: Run, terms: tuple[str, ...]) -> tuple[Array, Array]:
    """Columns as they come, (volumes, columns), and what each volume cost, ms."""
    t, pulse, belt = run.sensors()
    energy = np.bincount(run.slices, run.weights**2, SLICES)
    at = moments(run.protocol.tr_s, run.slice_s, energy)
    physiology = Physiology(terms, BOTH, run.protocol.tr_s)
    rows, spent, taken = [], [], 0
    for index in range(run.volumes):
        begins_s = index * run.protocol.tr_s
        until = int(np.searchsorted(t, begins_s + run.protocol.tr_s))
        began = time.process_time()
        for sensor, values in zip(BOTH, (pulse, belt), strict=True):
            physiology.add(sensor, 0, taken, values[taken:until], t[taken], 1 / RATE_HZ)
        taken = until
        rows.append(physiology.at(begins_s + at, begins_s + run.protocol.tr_s).terms)
        spent.append(1e3 * (time.process_time() - began))
    return np.array(rows), np.array(spent)


def offline_phases(run: Run) -> tuple[Array, Array, Array]:
    """Beats, and respiratory phase with its times, from the whole run."""
    t, pulse, belt = run.sensors()
    wave = sosfiltfilt(butter(2, (0.6, 6.0), "bandpass", fs=RATE_HZ, output="sos"), pulse)
    beats = t[find_peaks(wave, height=0.4 * np.percentile(wave, 95), distance=round(0.4 * RATE_HZ))[0]]
    air = sosfiltfilt(butter(2, 1.5, fs=RATE_HZ, output="sos"), belt)
    counts, edges = np.histogram(air, 100)
    share = np.interp(air, edges[1:], np.cumsum(counts) / len(air))
    return beats, t, np.pi * share * np.where(np.gradient(air) >= 0, 1.0, -1.0)


def offline(run: Run, slow: Array | None) -> Array:
    """The map's series after RETROICOR of each voxel with the phases of its slice, from the whole run, float64 (volumes,)."""
    beats, t, air = offline_phases(run)
    starts = np.arange(run.volumes) * run.protocol.tr_s
    x = np.linspace(-1, 1, run.volumes)
    known = np.polynomial.legendre.legvander(x, 6)
    cleaned = np.zeros(run.volumes)
    for k in np.unique(run.slices):
        own = run.slices == k
        times = starts + run.slice_s[k]
        heart = 2 * np.pi * np.interp(times, beats, np.arange(len(beats)))
        breath = air[np.clip(np.rint((times - t[0]) * RATE_HZ).astype(int), 0, len(t) - 1)]
        body = np.column_stack([f(m * angle) for angle in (heart, breath) for m in (1, 2) for f in (np.cos, np.sin)])
        if slow is not None:
            body = np.column_stack([body, slow])
        body -= body.mean(axis=0)
        found, *_ = np.linalg.lstsq(np.column_stack([body, known]), run.voxels[:, own], rcond=None)
        cleaned += (run.voxels[:, own] - body @ found[: body.shape[1]]) @ run.weights[own]
    return cleaned


def scores(run: Run, series: Array, terms: Array | None = None, groups: tuple[int, ...] = ()) -> tuple[Array, float]:
    """Scores of all images by the session's filter, and what a volume costs, ms."""
    filters = Deconvolver(run.protocol.tr_s, 0, replace(Grid(), motion_sd=(0.0,)), nuisance_terms=groups)
    unit = float(np.std(np.diff(series[:30]))) / np.sqrt(2)
    coming, spent = list(enumerate(run.onsets)), []
    for index, value in enumerate(series):
        began = time.process_time()
        t_s = (index + 0.5) * run.protocol.tr_s
        while coming and coming[0][1] <= t_s:
            number, onset = coming.pop(0)
            filters.add_image((0, number), onset, IMAGE_S)
        filters.add_volume(t_s, (value - series[0]) / unit, [] if terms is None else terms[index])
        spent.append(1e3 * (time.process_time() - began))
    found = filters.amplitudes()
    return np.array([found[0, k].value for k in range(len(run.onsets))]), float(np.median(spent[30:]))


def auc(truth: Array, found: Array) -> float:
    """Area under the curve of images above against below the median of the truth."""
    high = truth > np.median(truth)
    ranks = rankdata(found)
    return float((ranks[high].sum() - high.sum() * (high.sum() + 1) / 2) / (high.sum() * (~high).sum()))


def left(run: Run, series: Array, terms: Array | None) -> float:
    """Standard deviation of what neither responses, drift nor terms explain."""
    known = [np.polynomial.legendre.legvander(np.linspace(-1, 1, run.volumes), 6), run.clean[:, np.newaxis]]
    design = np.column_stack(known if terms is None else [*known, terms])
    found, *_ = np.linalg.lstsq(design, series, rcond=None)
    return float(np.sqrt(((series - design @ found) ** 2).sum() / (run.volumes - design.shape[1])))


def one(job: tuple[Protocol, int]) -> tuple[str, dict[str, tuple[float, float, float, float, float]]]:
    """Correlation, area, noise left, cost of columns and of the filter, by what was known."""
    protocol, seed = job
    with threadpool_limits(1):
        run, found = Run(protocol, seed), {}
        columns = {name: causal_terms(run, terms) for name, terms in CAUSAL.items()}
        groups = {name: sizes(terms, BOTH, protocol.tr_s) for name, terms in CAUSAL.items()}
        cases: dict[str, tuple[Array, Array | None, float]] = {"nothing": (run.series, None, 0.0)}
        cases |= {name: (run.series, terms, float(np.median(ms))) for name, (terms, ms) in columns.items()}
        cases["each voxel, afterwards: retroicor"] = (offline(run, None), None, 0.0)
        cases["each voxel, afterwards: all"] = (offline(run, columns["rvt, hrv"][0]), None, 0.0)
        for name, (series, terms, ms) in cases.items():
            value, cost = scores(run, series, terms, groups.get(name, ()))
            found[name] = (float(np.corrcoef(value, run.truth)[0, 1]), auc(run.truth, value), left(run, series, terms), ms, cost)
    return protocol.name, found


def table(results: list[tuple[str, dict[str, tuple[float, ...]]]]) -> str:
    """A table for each protocol, means over the runs."""
    lines = []
    for protocol in PROTOCOLS:
        own = [found for name, found in results if name == protocol.name]
        if not own:
            continue
        lines += [f"{protocol.name}, {len(own)} runs", f"  {'':<36}{'r':>7}{'AUC':>7}{'tSNR':>7}{'of peer':>9}{'ms':>7}{'filter':>8}"]
        mean = {name: np.mean([found[name] for found in own], axis=0) for name in own[0]}
        for name, (r, area, noise, ms, cost) in mean.items():
            peer = mean.get(f"each voxel, afterwards: {name}")
            against = f"{r / peer[0]:9.3f}" if peer is not None else f"{'':>9}"
            lines.append(f"  {name:<36}{r:7.3f}{area:7.3f}{mean['nothing'][2] / noise:7.2f}{against}{ms:7.2f}{cost:8.2f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4, help="runs of each protocol (default 4)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--protocol", type=int, default=-1, help="only this one, 0 = first")
    parser.add_argument("--out", type=Path, help="file for the tables, too")
    options = parser.parse_args(arguments)
    chosen = PROTOCOLS if options.protocol < 0 else PROTOCOLS[options.protocol : options.protocol + 1]
    jobs = [(protocol, seed) for seed in range(options.seeds) for protocol in chosen]
    with ProcessPoolExecutor(options.jobs) as pool:
        results = list(pool.map(one, jobs))
    text = f"{platform.processor() or platform.machine()}; processor time of a volume, ms\n{table(results)}"
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

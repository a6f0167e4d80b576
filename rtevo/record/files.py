"""What a run leaves: each file of its folder, and each key of its summary. The reference of the documentation is made of these tables."""

from __future__ import annotations

__all__ = ["FILES", "SUMMARY"]

FILES = {
    "record.jsonl": "append-only, checksummed log of everything that happened; `rtevo record OUT` makes all tables from it again",
    "summary.json": "the run in numbers: its keys are below",
    "trials.tsv": "a row for each image; the columns are below",
    "motion.tsv": "a row for each volume, against the run's reference; the columns are below",
    "events.tsv": "a localizer's run only: BIDS events of the pictures that were shown",
    "images/generation-00/candidate-00.png": "the pictures that evolution asked for",
    "refused/": "the pictures that the gate did not let through, where there were any",
    "pictures/": "a localizer's run only: the pictures of known categories",
    "latents.npz": "the latents, the embeddings that were asked for, and the embeddings that the pictures re-encode to",
    "evolution.json": "the state of evolution, for `rtevo run --evolution-from`",
    "session.toml": "all settings of the session, defaults and options included",
    "provenance.json": "versions of all packages, machine, and the hashes of decoder, latent space and model",
    "session.log": "the messages of the terminal",
    "decoder/": "the decoder that was used, where the session made it",
    "latent_space.npz": "the latent space that was used, where the session made it",
    "avoid.npy": "embeddings that the session stayed away from (`[safety] avoid`)",
    "decoder-before": "what the decoder had learnt in the run before, where a run of a visit took it over",
    "evolution-before.json": "the state of evolution of the run before, where a run of a visit took it over",
    "hidden_truth.tsv": "a simulated session only: what the participant thought of each picture",
    "hidden_truth.json": "a simulated session only: the response that the participant had",
    "hidden_motion.tsv": "a simulated session only: how the head moved",
    "placement/part-00/": "where the run lies on another grid than the decoder: today's reference, today's decoder, the overlay",
    "volumes/volume-00000.nii.gz": "the volumes as they came, without loss (`[record] save_volumes`)",
    "aligned/volume-00000.nii.gz": "the aligned volumes (`[record] save_volumes`)",
    "report.html": "the page that `rtevo report OUT` writes; `report.pdf`: the same to print",
}
"""Files of a run's folder: what each holds. A name that ends in a slash is a folder."""

SUMMARY = {
    "schema": "version of this file's layout",
    "rtevo": "the version that recorded the run",
    "started": "date and time, ISO 8601",
    "ended": "date and time, ISO 8601",
    "status": "completed, stopped, failed, or unscored (everything was shown, but no usable volumes came in)",
    "reason": "why the run ended, where it was not completed",
    "participant": "BIDS label",
    "condition": "what drove evolution; blinded where nobody may know",
    "source": "simulate, replay or watch",
    "seed": "of everything random",
    "speed": "how much faster than real time; 0: in lock-step",
    "tr_s": "repetition time, s",
    "shape": "voxels of a volume along X, Y, Z",
    "affine": "voxel index to RAS+ mm, 4 x 4",
    "cadence_s": "planned time from image to image, s",
    "generator": "what painted: backend, device, precision, steps, size, model",
    "images": "painted, shown; times_held: how often fixation was held for a late image; cadence_s: onset to onset within a generation",
    "generations": "for each generation: images, shown, mean_fitness, mean_score, mean_rating, mean_true_response (simulated sessions)",
    "volumes": "received, aligned, lost, unaligned, late",
    "probes": "n, score_sd, drift_per_min: how steady the scores of the probe images were",
    "placements": "each that was accepted: part, attempt, own_grid, matrix, correlation, overlap, weight_kept, expected_error_mm, verdict",
    "quality": "tsnr, framewise_displacement_mm (mean, max), dvars_percent (p50, max), spikes, score_reliability",
    "latencies_ms": "file_closed_to_aligned, last_needed_volume_to_score, scores_to_first_image: each n, p50, p99, max",
    "rings": "statistics of every ring in shared memory",
    "warnings": "every warning and alarm, in words",
    "localizer": "a localizer's run only: pictures shown, task, hits, misses, false alarms, largest error of a duration, dropped frames",
    "parts": "a resumed session only: each part's start, end, status, first volume, state of the decoder",
    "follows": "a visit only: the run before",
    "repeats": "a visit only: the run that this one repeats, and that does not count",
}
"""Keys of ``summary.json``: what each holds."""

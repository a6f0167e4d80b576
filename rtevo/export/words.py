"""Descriptions of an exported run's tables."""

# ruff: noqa: E501 - prose

from __future__ import annotations

from typing import Any

from rtevo.record import EVENTS as OF_LOCALIZER
from rtevo.records import MOTION_COLUMNS

__all__ = ["DESCRIPTIONS", "EVENTS", "LOCALIZER", "LOCALIZER_EVENTS", "MOTION", "OPTIONAL_COLUMNS", "README", "TASK"]

TASK, LOCALIZER = "rtevo", "localizer"
"""Labels of tasks."""
DESCRIPTIONS = {
    TASK: "Looks at images that evolve towards what the brain responds to (real-time closed loop).",
    LOCALIZER: "Looks at pictures of known categories.",
}
OPTIONAL_COLUMNS = (
    "note", "probe", "onset_error", "duration_error", "guessed", "dropped_frames", "rating", "response_time", "score", "score_se",
    "volumes_used",
    "fitness",
)  # fmt: skip

EVENTS: dict[str, dict[str, Any]] = {
    "onset": {"Description": "Flip at which the image appeared, from the start of the first volume.", "Units": "s"},
    "duration": {"Description": "Time until the flip that took the image away.", "Units": "s"},
    "trial_type": {
        "Description": "Kind of event.",
        "Levels": {"image": "an evolved image", "mark": "the operator marked this moment, see note"},
    },
    "stim_file": {"Description": "The image, in stimuli/."},
    "note": {
        "Description": "The operator's note about a moment. Marks made while the scanner did not run have the onset of the last volume "
        "before, or of the first volume of a run that continues after an interruption."
    },
    "generation": {"Description": "Generation of the image, 0 = first."},
    "candidate": {"Description": "Number of the image in its generation."},
    "probe": {"Description": "Number of the probe, an image that is shown repeatedly; n/a: a candidate of evolution."},
    "onset_error": {"Description": "Bound of the onset's error: of the stimulus computer's clock, and of a stalled screen.", "Units": "s"},
    "duration_error": {"Description": "Bound of the duration's error.", "Units": "s"},
    "guessed": {
        "Description": "1: onset, end or response of the image is a guess within its bounds (a stalled screen, a presenter that ended)."
    },
    "dropped_frames": {"Description": "Frames of the screen that were missed between the end of the previous image and that of this one."},
    "rating": {"Description": "The participant's rating, 0 = lowest; n/a: none."},
    "response_time": {"Description": "From the rating screen to the key press.", "Units": "s"},
    "score": {"Description": "The brain's response to the image as decoded during the session (last revision)."},
    "score_se": {"Description": "Standard error of score."},
    "volumes_used": {"Description": "Number of volumes used for the score."},
    "fitness": {"Description": "Fitness of the image, as used by evolution."},
}
_SECONDS = ("onset", "duration", "response_time", "onset_error")
LOCALIZER_EVENTS: dict[str, dict[str, Any]] = {  # with units, if any
    name: {"Description": words[0].upper() + words[1:] + ".", **({"Units": "s"} if name in _SECONDS else {})}
    for name, (_, words) in OF_LOCALIZER.items()
}
MOTION = {
    **{name: {"Description": f"Translation along {name[-1]} (RAS+).", "Units": "mm"} for name in MOTION_COLUMNS[:3]},
    **{name: {"Description": f"Rotation about {name[-1]} (RAS+).", "Units": "rad"} for name in MOTION_COLUMNS[3:]},
    "framewise_displacement": {"Description": "Power et al. 2012, doi:10.1016/j.neuroimage.2011.10.018, 50 mm sphere.", "Units": "mm"},
}
README = """# Real-time fMRI with evolved images

Participants looked at images that an image model painted while they lay in the scanner. The response to each image was decoded as
volumes arrived, and evolution in the model's latent space drove the next images towards what the brain responded to (software: rtevo).

`events.tsv` has a row for each image: onset on the scanner's clock, the image (`stimuli/`), and its score and fitness as known
during the session; and one for each moment that the operator marked, with a note. Runs of the task `localizer`
showed pictures of known categories (`trial_type`) with a task (`target`, `response`); decoders were fitted to them. Voxels of a volume that never arrived are NaN; the
sidecar's `MissingVolumes` lists them. `derivatives/rtevo` holds results of the session: realigned volumes
(`*_space-scanner_desc-preproc_bold.nii.gz`, in which the mean replaces missing volumes), motion and a spike for every volume that a model
must leave out (`*_desc-confounds_timeseries.tsv`), scores with standard errors, latents, the decoder, all settings and versions, and the
complete event log.

    from nilearn.glm.first_level import first_level_from_bids
    models, images, events, confounds = first_level_from_bids(
        "BIDS_DIR", "rtevo", space_label="scanner", derivatives_folder="derivatives/rtevo", slice_time_ref=0.5
    )
"""

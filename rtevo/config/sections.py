"""The keys of a session file: each with its default, its comment, and the rule for its value."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rtevo.config.acquisition import Acquisition
from rtevo.config.keys import LABEL_RULE, above, at_least, is_address, is_label, key, one_of
from rtevo.config.physio import Physio
from rtevo.config.simulation import Simulation

__all__ = [
    "Acquisition",
    "Bridge",
    "Config",
    "Console",
    "Decoder",
    "Evolution",
    "Generator",
    "Localizer",
    "Physio",
    "Presentation",
    "Record",
    "Safety",
    "Session",
    "Simulation",
]

DEVICE = re.compile(r"cuda:\d+|dask://[^:/\s]+:\d{1,5}")
"""Devices of the generator with a number or an address."""


def _is_range(x: tuple[float, ...]) -> bool:
    return len(x) == 2 and 0 <= x[0] <= x[1]


@dataclass(frozen=True)
class Session:
    """Participant, condition and kind of the session."""

    participant: str = key("sim", "BIDS participant label", LABEL_RULE, is_label)
    session: str = key("01", "BIDS session label", LABEL_RULE, is_label)
    run: int = key(1, "BIDS run number; default: one more than the last in sessions/", *at_least(1))
    condition: str = key(
        "brain",
        "what drives evolution: brain (decoded scores), ratings (button presses), physiology (skin conductance), sham (scores shuffled "
        "among the candidates), yoked (another session's scores), random (nothing), blinded (one of these, named by the blinding key)",
        **one_of("brain", "ratings", "physiology", "sham", "yoked", "random", "blinded"),
    )
    task: str = key(
        "evolution",
        "kind of run: evolution (images that evolve), localizer (pictures of known categories, to fit a decoder; `rtevo localizer` "
        "sets it)",
        **one_of("evolution", "localizer"),
    )
    seed: int = key(1, "seed of everything random; the same seed and input give the same session", *at_least(0))
    speed: float = key(1.0, "time runs this many times faster (simulate and replay only); 0 = as fast as the computer allows", *at_least(0))


@dataclass(frozen=True)
class Decoder:
    """How a response becomes a score."""

    folder: str = key("", "decoder folder; empty: simulate makes one, replay uses a demonstration map, watch needs one", path="folder")
    name: str = key("", "map of the folder, NAME_img.nii.gz; empty = the only one")
    objective: str = key(
        "",
        "objective to maximise, if not one map: a sum over maps of the folder, as face - 0.5 * place, face - mean(others), "
        "face - 0.3 * keep(place) (place stays near its mean), rank(face); empty = the map in `name`",
    )
    more_folders: tuple[str, ...] = key(
        (),
        "more decoder folders with maps for the objective (FOLDER/NAME if two have a map of one name); they share the placement of the "
        "first",
        path="folder",
    )
    placement: str = key(
        "auto",
        "placement of the decoder on today's head: auto (from the run's first volumes, while the participant sees fixation), or a file "
        "with the rigid transform from the decoder's reference to today's (ITK, FSL, AFNI, FreeSurfer; --help of decode place)",
        path="file",
    )
    scout: str = key(
        "",
        "a scan of this visit, on which the decoder is placed before the run: a file or folder (DICOM, NIfTI), or a series number in "
        "[acquisition] folder; the search in the run starts from there",
        path="file, folder or series number",
    )
    doubtful: str = key(
        "wait",
        "a doubtful placement: wait (for the operator's decision, at the console or the terminal; without an operator it is refused), "
        "refuse",
        **one_of("wait", "refuse"),
    )
    fwhm_mm: float = key(4.0, "Gaussian smoothing, full width at half maximum, mm; 0 = none", *at_least(0))
    method: str = key(
        "deconvolve",
        "deconvolve (overlapping responses are separated, with standard errors), pattern (the same for each voxel; correlation with the "
        "map), peak (correlation of the volumes around the peak with the map)",
        **one_of("deconvolve", "pattern", "peak"),
    )
    motion_terms: int = key(
        6, "motion regressors (not peak): 6 parameters, or 24 with the last volume's and squares", "6 or 24", lambda x: x in (6, 24)
    )
    drift: str = key("walk", "drift (not peak): a random walk, or terms fixed beforehand", **one_of("walk", "cosine", "polynomial"))
    nuisance: tuple[str, ...] = key(
        (),
        "more nuisance terms (not peak), used as far as the volumes support them: white_matter, csf (the mean of each), acompcor (5 "
        "components of both), global (the mean of the head, which contains responses too)",
        "some of white_matter, csf, acompcor, global, each once",
        lambda x: len(set(x)) == len(x) and {"white_matter", "csf", "acompcor", "global"}.issuperset(x),
    )
    white_matter_mask: str = key(
        "", "nuisance: white matter, a NIfTI file in the decoder's space; empty = guessed from the reference's brightness", path="file"
    )
    csf_mask: str = key("", "nuisance: cerebrospinal fluid, likewise", path="file")
    hrf: str = key("canonical", "shape of the response (not peak)", **one_of("canonical", "derivatives", "fir"))
    spike_mm: float = key(1.0, "a volume with a larger framewise displacement, mm, is a spike, and left out (not peak)", *above(0))
    first_score_s: float = key(8.0, "deconvolve: an image is scored this long after its onset, s", *above(0))
    delay_s: float = key(6.0, "peak: centre of the scoring window after an image's onset, s", *at_least(0))
    half_window_tr: int = key(1, "peak: half width of the scoring window, TRs", *at_least(0))
    continue_from: str = key(
        "",
        "folder of an earlier run of this visit: the decoder continues with that run's noise and responses, but not the signal's level; "
        "it is placed again, starting from its earlier place",
        path="folder",
    )
    threads: int = key(1, "threads of the realignment kernels; one is fastest if other processes are busy", *at_least(1))


@dataclass(frozen=True)
class Evolution:
    """How scores become the next latents."""

    strategy: str = key(
        "surrogate",
        "surrogate (a model of all scores so far), direct (the same model of the volumes themselves, without scores), truncation (mean of "
        "the better half, and mutation), cma, sepcma, random",
        **one_of("surrogate", "direct", "truncation", "cma", "sepcma", "random"),
    )
    schedule: str = key(
        "steady",
        "steady (every image is requested from the scores so far), generational (a generation waits for all scores of the last one)",
        **one_of("steady", "generational"),
    )
    generations: int = key(7, "generations in the run (steady: blocks, for counting); it may end earlier, see stop_*", *at_least(1))
    population: int = key(5, "images in a generation", *at_least(1))
    prefetch: int = key(
        2,
        "steady: images requested beyond the one on the screen; one more after each late image",
        "1 to 8",
        lambda x: 1 <= x <= 8,
    )
    stop_minutes: float = key(0.0, "no more images are requested after this time from the first volume, min; 0 = no limit", *at_least(0))
    stop_gain: float = key(
        0.0,
        "no more images once a generation is expected to gain less, standard deviations of random images (surrogate, direct); 0 = no limit",
        *at_least(0),
    )
    mutation_sd: float = key(0.5, "truncation: standard deviation of new latents around the weighted mean of the parents", *at_least(0))
    preference_half_life: float = key(
        0.0, "surrogate: number of images after which a score counts half, because preferences drift; 0 = no drift", *at_least(0)
    )
    norm_limits: tuple[float, ...] = key(
        (),
        "least and greatest length of a latent, 1 = that of random ones; the greatest holds for embeddings, too; "
        "empty = the strategy's own (surrogate: 0.5 to 1 + 1/sqrt(size))",
        "two numbers, 0 < least <= greatest",
        lambda x: not x or (len(x) == 2 and 0 < x[0] <= x[1]),
    )
    latent_size: int = key(12, "number of latent dimensions", *at_least(1))
    pca: str = key("", "latent space (.npz with mean and components); empty = the built-in model's", path="file")
    latent_scaling: str = key(
        "file",
        "units of latents: file (the latent space's own), whitened (standard deviations: random latents look like its pictures), plain",
        **one_of("file", "whitened", "plain"),
    )
    use_post_encodings: bool = key(False, "parents are the pictures' re-encoded embeddings, not the requested ones")
    score_deadline_s: float = key(20.0, "longest wait for missing scores after the end of the last requested image, s", *above(0))
    probe_every: int = key(
        0, "one image in this many is a probe, to track drift and reliability; 0 = none", "0 or >= 2", lambda x: x == 0 or x >= 2
    )
    probes: int = key(2, "number of different probes, shown in turn; the same in every session of a latent space", *at_least(1))
    yoked_to: str = key(
        "", "condition yoked: folder of the session whose scores are used, or the trials.tsv in it, or a study's sealed file of scores",
        path="file or folder",
    )  # fmt: skip
    blinding_key: str = key("", "condition blinded: file made by `python -m rtevo.evolve blind`", path="file")
    blinding_secret: str = key("", "condition blinded: file with the secret of the key (--secret); empty = none", path="file")
    sealed: bool = key(
        False,
        "condition blinded, with blinding_secret: log, tables, summary and report hide the condition also after the run's end, until its "
        "study is unsealed",
    )
    continue_from: str = key(
        "",
        "evolution.json of an earlier run, or its folder: evolution continues from there, with all runs that it continued",
        path="file or folder",
        once="resume",
    )


@dataclass(frozen=True)
class Generator:
    """How embeddings become images."""

    unclip_model_path: str = key("", "model folder (see docs/generator.md); empty = the built-in model: emoji, 64 px", path="folder")
    steps: int = key(10, "denoising steps per image", *at_least(1))
    guidance_scale: float = key(3.0, "classifier-free guidance; 1 = off, half the work; use 1 for models of few steps", *at_least(1))
    noise_level: int = key(0, "noise added to the embedding, in steps of the pipeline's noise schedule", *at_least(0))
    backend: str = key(
        "auto",
        "auto (the fastest available that paints the same as eager; the log says which and why), eager (unchanged diffusers), "
        "compiled (torch.compile, CUDA graphs), tensorrt (engines built by build/engine.py)",
        **one_of("auto", "eager", "compiled", "tensorrt"),
    )
    scheduler: str = key(
        "model",
        "model (the model's own), ddim, pndm, dpm++2m, unipc; for models of few steps: euler (trailing), lcm",
        **one_of("model", "ddim", "pndm", "dpm++2m", "unipc", "euler", "lcm"),
    )
    devices: tuple[str, ...] = key(
        ("auto",),
        "devices that paint, one process on each; they paint in turn, and their number does not change the images",
        "at least one of auto (CUDA if there is a device, else CPU), cpu, cuda, cuda:N, dask://HOST:PORT (Dask workers)",
        lambda x: len(x) > 0 and all(d in ("auto", "cpu", "cuda") or DEVICE.fullmatch(d) for d in x),
    )
    workers_model: str = key("", "dask: the same model's folder on the workers' computers; empty = unclip_model_path")
    workers_keys: str = key("", "dask: folder with ca.pem, cert.pem, key.pem (TLS); needed if HOST is not this computer", path="folder")
    answer_s: float = key(4.0, "dask: after this time without an image from one worker, another is asked, s", *above(0))
    batch: int = key(1, "images denoised together, after the first of a request, which is always denoised alone", *at_least(1))
    px: int = key(0, "longer side of an image, pixels; 0 = the model's own", *at_least(0))
    tiny_vae: str = key("", "folder of an AutoencoderTiny that decodes instead of the model's own; empty = none", path="folder")
    engines: str = key("", "folder of TensorRT engines; empty = engines/ in the model's folder", path="folder")
    deadline_s: float = key(
        0.0, "an image is late, and logged, this long after its request, s; 0 = image_s + washout_s; fixation is held", *at_least(0)
    )
    fallback: bool = key(
        False, "if the backend fails in a session (out of memory, black picture): continue with eager in single precision, and log it"
    )
    threads: int = key(1, "CPU threads of torch; one is fastest if other processes are busy", *at_least(1))
    same_noise: bool = key(True, "every image starts from the same noise, so that a picture depends only on its embedding")
    noise_seed: int = key(
        0, "seed of that noise: with the same seed, a probe is the same picture in all runs; 0 = the session's seed", *at_least(0)
    )


@dataclass(frozen=True)
class Safety:
    """Filters that keep pictures from the participant: docs/safety.md."""

    avoid: str = key(
        "",
        "content to avoid, in requested latents and in painted pictures: a folder of example pictures, or embeddings (.npy, n x embedding "
        "size); empty = none. python -m rtevo.gate calibrate shows which pictures would be refused",
        path="file or folder",
        once="evolution.avoid",
    )
    avoid_distance: float = key(
        0.3, "smallest cosine distance to any avoided content", "> 0 and < 2", lambda x: 0 < x < 2, once="evolution.avoid_distance"
    )
    keep_away: float = key(
        0.0,
        "evolution also keeps this cosine distance to pictures that a filter or the operator refused; 0 = none",
        "0 to 1",
        lambda x: 0 <= x <= 1,
    )
    checker: str = key("", "folder of a CLIP safety checker (diffusers' format); empty = none", path="folder")
    filters: tuple[str, ...] = key((), "filters installed as entry points of rtevo.filters: NAME, or NAME=THRESHOLD")
    deadline_s: float = key(1.0, "a filter without a judgement after this time refuses the picture, s", *above(0))
    approval: str = key(
        "none",
        "none, veto (the operator sees every picture before it is due, and can take it out), each (every picture needs approval); with "
        "veto and each the operator sees neither scores nor condition",
        **one_of("none", "veto", "each"),
    )
    away_key: str = key("backspace", "key of the stimulus PC that takes the picture on the screen away; empty = none")
    participant_key: str = key("", "key of the response box that does the same; empty = none")
    stop_key: str = key("", "key of the response box with which the participant asks to stop; empty = none")


@dataclass(frozen=True)
class Presentation:
    """Images, texts and keys of the participant."""

    image_s: float = key(3.0, "duration of an image, s", *above(0))
    washout_s: float = key(1.0, "fixation after each image, s", *at_least(0))
    washout_jitter_s: float = key(0.0, "largest additional fixation after an image, drawn uniformly, s", *at_least(0))
    rating_window_s: float = key(5.0, "longest time to rate an image (condition ratings), s", *above(0))
    baseline_s: float = key(6.0, "fixation between the trigger and the first image, s", *at_least(0))
    trigger: str = key(
        "keyboard",
        "input of the scanner's pulses at the stimulus PC: keyboard, serial:PORT@BAUD (every byte is a pulse), serial:PORT@BAUD=5 "
        "(only this byte is; others are keys: a box may send answers on the same line), parallel:ADDRESS@PIN",
    )
    trigger_key: str = key("5", "key that a pulse presses on the keyboard", "one key name", bool)
    pulses_per_volume: int = key(1, "pulses for each volume, if the scanner sends one for each slice", *at_least(1))
    dummy_triggers: int = key(0, "pulses of dummy volumes, before the first exported volume", *at_least(0))
    rating_keys: tuple[str, ...] = key(
        ("1", "2", "3", "4", "6"),
        "keys for ratings 0, 1, 2, ..., as they lie from left to right",
        "2 to 20 different keys",
        lambda x: len(set(x)) == len(x) in range(2, 21),
    )
    rating_labels: tuple[str, ...] = key((), "labels of the scale for the ratings; empty = 1, 2, 3, ...")
    rating_order: str = key(
        "ascending",
        "ascending (leftmost key = lowest rating), descending, or counterbalanced (descending for every second run and participant)",
        **one_of("ascending", "descending", "counterbalanced"),
    )
    mirrored: bool = key(False, "flip everything left to right, for a projection screen seen through a mirror")
    background: tuple[float, ...] = key((0.5, 0.5, 0.5), "red, green and blue behind everything, 0 to 1")
    fixation: str = key("cross", "shape of the fixation: cross, dot, bullseye or none")
    fixation_height: float = key(0.05, "size of the fixation as a share of the screen's height")
    image_height: float = key(0.8, "image height as a share of the screen's; 0 = one screen pixel for each of the image's")
    image_deg: float = key(0.0, "image height in degrees of visual angle, instead of image_height; 0 = use image_height", *at_least(0))
    monitor: str = key("", "name in the stimulus PC's PsychoPy monitor centre (gamma, width, distance); empty = none")
    screen_width_cm: float = key(0.0, "width of the screen that the participant sees, cm; 0 = from the monitor centre", *at_least(0))
    viewing_distance_cm: float = key(0.0, "eye to screen, via the mirror, cm; 0 = from the monitor centre", *at_least(0))
    full_screen: bool = key(True, "full screen, or a window")
    screen: int = key(0, "number of the screen, 0 = the first", *at_least(0))
    wait_text: str = key("The session is about to begin.\n\nPlease look at the middle of the screen.", "shown until the trigger")
    rating_text: str = key("How much did you like it?", "shown during the rating window (condition ratings)")
    end_text: str = key("Thank you. Please keep still until we speak to you.", "shown at the end")
    between_text: str = key("Please keep still. It goes on soon.", "shown between the runs of a visit (--visit)")
    end_s: float = key(
        2.0,
        "duration of the end text if the presenter then exits (--once), s; else until the next run, or Escape there",
        *at_least(0),
    )
    font: str = key("", "font of all texts: a family or a file; empty = the first installed font with every character")
    text_height: float = key(0.04, "size of the font as a share of the screen's height", *above(0))
    text_direction: str = key(
        "auto", "auto (from the characters), left-to-right or right-to-left", **one_of("auto", "left-to-right", "right-to-left")
    )
    lsl: bool = key(False, "also send events as markers of the Lab Streaming Layer (pylsl on the stimulus PC)")


@dataclass(frozen=True)
class Localizer:
    """Pictures of known categories, to fit a decoder: `rtevo localizer`, docs/localizer.md."""

    folder: str = key("", "folder of pictures, a subfolder for each category; empty: simulate shows a small built-in set", path="folder")
    design: str = key(
        "blocks", "blocks (pictures of one category together, then rest), events (single pictures)", **one_of("blocks", "events")
    )
    image_s: float = key(0.8, "duration of a picture, s", *above(0))
    blank_s: float = key(0.2, "blocks: fixation after a picture within a block, s", *at_least(0))
    block_images: int = key(10, "pictures in a block; events: single pictures in place of a block", "2 to 1000", lambda x: 2 <= x <= 1000)
    rest_s: float = key(10.0, "blocks: fixation after a block, s", *at_least(0))
    gap_s: tuple[float, ...] = key(
        (2.0, 6.0), "events: fixation after a picture, drawn uniformly, s", "two numbers, 0 <= least <= greatest", _is_range
    )
    repetitions: int = key(
        4,
        "blocks of each category; if a multiple of the number of categories, each is in every position equally often",
        "1 to 1000",
        lambda x: 1 <= x <= 1000,
    )
    task: str = key(
        "one-back",
        "the participant's task, answered with any of [presentation] rating_keys: one-back (a picture shown twice in a row), detection (a "
        "red dot on a picture), none",
        **one_of("one-back", "detection", "none"),
    )
    targets: float = key(0.1, "share of target pictures, to be answered", "0 to 0.3", lambda x: 0 <= x <= 0.3)
    response_s: float = key(1.5, "longest time from a target's onset to a press that answers it, s", *above(0))


@dataclass(frozen=True)
class Bridge:
    """The link to the stimulus PC (simulate and replay start their own presenter, unless [simulation] participant is set)."""

    bind: str = key(
        "tcp://127.0.0.1:5555",
        "address to listen at; any other than loopback needs keys",
        "tcp://ADDRESS:PORT",
        lambda x: x.startswith("tcp://"),
    )
    keys: str = key("", "folder made by `python -m rtevo.bridge keys`", path="folder")
    osc: str = key("", "condition physiology: address (ADDRESS:PORT, UDP) at which skin conductance arrives as OSC messages")
    osc_path: str = key("/eda", "OSC address of those messages; their first argument is the conductance in microsiemens")
    lost_s: float = key(120.0, "the session ends after this time without a message from the presenter, s", *above(0))


@dataclass(frozen=True)
class Record:
    """The record of a run."""

    out: str = key(
        "", "output folder, must not exist yet; empty = sessions/sub-LABEL_ses-LABEL_run-N, of participant sim DATE-N", path="new"
    )
    group: str = key("", "group of this computer's users who may read it too; empty = only the account that runs the session")
    save_volumes: str = key(
        "raw",
        "volumes to keep: raw (volumes/volume-00000.nii.gz, as received; needed by export and rerun), aligned (aligned/...), both, none",
        **one_of("raw", "aligned", "both", "none"),
    )
    lsl: bool = key(False, "also send motion, scores and events live over the Lab Streaming Layer (pip install 'rtevo[lsl]'; docs/live.md)")


@dataclass(frozen=True)
class Console:
    """The operator's page in a browser (pip install 'rtevo[console]')."""

    port: int = key(0, "TCP port to serve it at; 0 = none; --console is 8080", "0 to 65535", lambda x: 0 <= x <= 65535)
    address: str = key(
        "127.0.0.1",
        "this computer's address to serve it at; browsers need the token in the address printed at the start",
        "an IP address",
        is_address,
    )


@dataclass(frozen=True)
class Config:
    """A whole session: one attribute per section of the file."""

    session: Session = field(default_factory=Session)
    acquisition: Acquisition = field(default_factory=Acquisition)
    decoder: Decoder = field(default_factory=Decoder)
    physio: Physio = field(default_factory=Physio)
    evolution: Evolution = field(default_factory=Evolution)
    generator: Generator = field(default_factory=Generator)
    safety: Safety = field(default_factory=Safety)
    presentation: Presentation = field(default_factory=Presentation)
    localizer: Localizer = field(default_factory=Localizer)
    bridge: Bridge = field(default_factory=Bridge)
    record: Record = field(default_factory=Record)
    console: Console = field(default_factory=Console)
    simulation: Simulation = field(default_factory=Simulation)

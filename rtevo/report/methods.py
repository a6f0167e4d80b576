"""The methods of a run in the words of a paper, from its actual settings, with references."""

# ruff: noqa: E501 - prose

from __future__ import annotations

import math

from rtevo.records import VolumeFlag
from rtevo.report.gather import Session
from rtevo.report.localizer import presentation as shown_to

__all__ = ["REFERENCES", "methods"]

REFERENCES = {
    "baker2004": "Baker S, Matthews I (2004). Lucas-Kanade 20 years on: a unifying framework. Int J Comput Vis 56:221–255. "
    "doi:10.1023/B:VISI.0000011205.11775.fd",
    "unser1993": "Unser M, Aldroubi A, Eden M (1993). B-spline signal processing: part I, theory. IEEE Trans Signal Process 41:821–833. "
    "doi:10.1109/78.193220",
    "avants2008": "Avants BB, Epstein CL, Grossman M, Gee JC (2008). Symmetric diffeomorphic image registration with cross-correlation. "
    "Med Image Anal 12:26–41. doi:10.1016/j.media.2007.06.004",
    "beaton1974": "Beaton AE, Tukey JW (1974). The fitting of power series, meaning polynomials, illustrated on band-spectroscopic data. "
    "Technometrics 16:147–185. doi:10.1080/00401706.1974.10489171",
    "posse1999": "Posse S, Wiese S, Gembris D, et al. (1999). Enhancement of BOLD-contrast sensitivity by single-shot multi-echo functional "
    "MR imaging. Magn Reson Med 42:87–97. doi:10.1002/(SICI)1522-2594(199907)42:1<87::AID-MRM13>3.0.CO;2-O",
    "jezzard1995": "Jezzard P, Balaban RS (1995). Correction for geometric distortion in echo planar images from B0 field variations. Magn "
    "Reson Med 34:65–73. doi:10.1002/mrm.1910340111",
    "power2012": "Power JD, Barnes KA, Snyder AZ, Schlaggar BL, Petersen SE (2012). Spurious but systematic correlations in functional "
    "connectivity MRI networks arise from subject motion. NeuroImage 59:2142–2154. doi:10.1016/j.neuroimage.2011.10.018",
    "friston1996": "Friston KJ, Williams S, Howard R, Frackowiak RSJ, Turner R (1996). Movement-related effects in fMRI time-series. Magn Reson "
    "Med 35:346–355. doi:10.1002/mrm.1910350312",
    "friston1998": "Friston KJ, Fletcher P, Josephs O, Holmes A, Rugg MD, Turner R (1998). Event-related fMRI: characterizing differential "
    "responses. NeuroImage 7:30–40. doi:10.1006/nimg.1997.0306",
    "glover1999": "Glover GH (1999). Deconvolution of impulse response in event-related BOLD fMRI. NeuroImage 9:416–429. "
    "doi:10.1006/nimg.1998.0419",
    "glover2000": "Glover GH, Li TQ, Ress D (2000). Image-based method for retrospective correction of physiological motion effects in fMRI: "
    "RETROICOR. Magn Reson Med 44:162–167. doi:10.1002/1522-2594(200007)44:1<162::AID-MRM23>3.0.CO;2-E",
    "birn2006": "Birn RM, Diamond JB, Smith MA, Bandettini PA (2006). Separating respiratory-variation-related fluctuations from "
    "neuronal-activity-related fluctuations in fMRI. NeuroImage 31:1536–1548. doi:10.1016/j.neuroimage.2006.02.048",
    "chang2009": "Chang C, Cunningham JP, Glover GH (2009). Influence of heart rate on the BOLD signal: the cardiac response function. "
    "NeuroImage 44:857–869. doi:10.1016/j.neuroimage.2008.09.029",
    "behzadi2007": "Behzadi Y, Restom K, Liau J, Liu TT (2007). A component based noise correction method (CompCor) for BOLD and perfusion "
    "based fMRI. NeuroImage 37:90–101. doi:10.1016/j.neuroimage.2007.04.042",
    "dickey1971": "Dickey JM (1971). The weighted likelihood ratio, linear hypotheses on normal location parameters. Ann Math Stat "
    "42:204–223. doi:10.1214/aoms/1177693507",
    "kalman1960": "Kalman RE (1960). A new approach to linear filtering and prediction problems. J Basic Eng 82:35–45. doi:10.1115/1.3662552",
    "hoeting1999": "Hoeting JA, Madigan D, Raftery AE, Volinsky CT (1999). Bayesian model averaging: a tutorial. Stat Sci 14:382–417. "
    "doi:10.1214/ss/1009212519",
    "ramesh2022": "Ramesh A, Dhariwal P, Nichol A, Chu C, Chen M (2022). Hierarchical text-conditional image generation with CLIP latents. "
    "arXiv:2204.06125",
    "rombach2022": "Rombach R, Blattmann A, Lorenz D, Esser P, Ommer B (2022). High-resolution image synthesis with latent diffusion models. "
    "CVPR 2022:10684–10695. doi:10.1109/CVPR52688.2022.01042",
    "radford2021": "Radford A, Kim JW, Hallacy C, et al. (2021). Learning transferable visual models from natural language supervision. ICML 2021, "
    "PMLR 139:8748–8763",
    "ho2022": "Ho J, Salimans T (2022). Classifier-free diffusion guidance. arXiv:2207.12598",
    "thompson1933": "Thompson WR (1933). On the likelihood that one unknown probability exceeds another in view of the evidence of two samples. "
    "Biometrika 25:285–294. doi:10.1093/biomet/25.3-4.285",
    "patterson1971": "Patterson HD, Thompson R (1971). Recovery of inter-block information when block sizes are unequal. Biometrika 58:545–554. "
    "doi:10.1093/biomet/58.3.545",
    "hansen2001": "Hansen N, Ostermeier A (2001). Completely derandomized self-adaptation in evolution strategies. Evol Comput 9:159–195. "
    "doi:10.1162/106365601750190398",
    "ros2008": "Ros R, Hansen N (2008). A simple modification in CMA-ES achieving linear time and space complexity. PPSN X:296–305. "
    "doi:10.1007/978-3-540-87700-4_30",
    "peirce2019": "Peirce J, Gray JR, Simpson S, et al. (2019). PsychoPy2: experiments in behavior made easy. Behav Res Methods 51:195–203. "
    "doi:10.3758/s13428-018-01193-y",
    "cristian1989": "Cristian F (1989). Probabilistic clock synchronization. Distrib Comput 3:146–158. doi:10.1007/BF01784024",
    "boucsein2012": "Boucsein W, Fowles DC, Grimnes S, et al. (2012). Publication recommendations for electrodermal measurements. Psychophysiology "
    "49:1017–1034. doi:10.1111/j.1469-8986.2012.01384.x",
}


class _Cited:
    """Numbers references in the order in which they are cited."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, *names: str) -> str:
        self.names += [name for name in names if name not in self.names]
        return "[" + ", ".join(str(self.names.index(name) + 1) for name in names) + "]"


def methods(session: Session) -> tuple[list[tuple[str, str]], list[str]]:
    """Describe what was done.

    Returns
    -------
    paragraphs : list of (str, str)
        Heading and text.
    references : list of str
        In the order of their numbers.
    """
    cite = _Cited()
    if session.localizer:
        words, first = shown_to(session)
        cite.names = [""] * len(first)  # their numbers are taken
        paragraphs = [
            ("Presentation and task", words),
            ("Acquisition", _acquisition(session)),
            ("Motion and quality", _motion(session, cite)),
        ]
        return paragraphs, first + [REFERENCES[name] for name in cite.names if name]
    paragraphs = [
        ("Acquisition", _acquisition(session)),
        ("Realignment and quality", _realignment(session, cite)),
        ("Response estimates", _decoding(session, cite)),
        ("Images", _images(session, cite)),
        ("Safety", _safety(session)),
        ("Evolution", _evolution(session, cite)),
        ("Presentation and timing", _presentation(session, cite)),
    ]
    return paragraphs, [REFERENCES[name] for name in cite.names]


def _acquisition(session: Session) -> str:
    summary, settings = session.summary, session.settings
    x, y, z = summary["shape"]
    columns = zip(*[row[:3] for row in summary["affine"][:3]], strict=True)
    voxel = " × ".join(f"{math.sqrt(sum(v * v for v in column)):.3g}" for column in columns)
    volumes = summary["volumes"]
    origin = {
        "simulate": "The data are simulated: a simulated participant looked at the images in a simulated scanner, which delivered",
        "replay": "A recorded series was delivered again at its own pace:",
        "watch": "The scanner exported",
    }[summary["source"]]
    delivery = {
        "folder": "files in a watched folder",
        "dicom": "DICOM sent over the network (C-STORE)",
        "push": "volumes pushed over the network",
    }[settings["acquisition"]["delivery"]]
    lost = f"{volumes['lost']} never arrived" if volumes["lost"] else "none was lost"
    return (
        f"{origin} one volume ({x} × {y} × {z} voxels of {voxel} mm) every {summary['tr_s']:g} s (repetition time) as {delivery}. "
        f"{volumes['received']} volumes were received, {lost}. A volume that had not arrived {settings['acquisition']['patience_tr']:g} repetition "
        "times after its successor was declared missing and left out of all estimates."
    )


def _realignment(session: Session, cite: _Cited) -> str:
    decoder, quality = session.settings["decoder"], session.summary.get("quality", {})
    displacement = quality.get("framewise_displacement_mm", {})
    text = (
        f"{_placement(session, cite)} as it came, by a rigid-body transformation (6 parameters, inverse-compositional "
        f"Gauss-Newton {cite('baker2004')} with robust weights {cite('beaton1974')}) and resliced with B-splines {cite('unser1993')}. "
        f"Head motion from volume to volume was summarised as framewise displacement (50 mm sphere {cite('power2012')})"
    )
    if displacement.get("mean") is not None:
        text += f": mean {displacement['mean']:.2f} mm, largest {displacement['max']:.2f} mm"
    if decoder["method"] != "peak":
        spikes = len(session.flagged(VolumeFlag.SPIKE))
        text += f". Volumes displaced by more than {decoder['spike_mm']:g} mm ({spikes}) did not count"
    unaligned = session.summary["volumes"]["unaligned"]
    if unaligned:
        text += f"; {unaligned} could not be aligned"
    smoothing = (
        f"smoothed with a Gaussian of {decoder['fwhm_mm']:g} mm full width at half maximum" if decoder["fwhm_mm"] else "not smoothed"
    )
    tsnr = f" Temporal signal-to-noise ratio inside the decoder's mask was {quality['tsnr']:.0f} (median)." if quality.get("tsnr") else ""
    return f"{text}.{_made(session, cite)} Aligned volumes were {smoothing}.{tsnr}"


def _made(session: Session, cite: _Cited) -> str:
    """Describe the processing of volumes besides their motion; empty if there was none."""
    settings = session.settings["acquisition"]
    echoes, warp = settings.get("echoes", 1), bool(settings.get("distortion"))
    text = ""
    if echoes > 1:
        fitted = "read from a map" if settings.get("t2star") else "fitted to the run's first 8 volumes"
        text += f" Motion was estimated from the first of {echoes} echoes and applied to all; the echoes were combined with weights by T2* {cite('posse1999')}, {fitted}; a volume without one of them counted as missing."
    if warp:
        text += f" Distortion along phase encoding was undone {cite('jezzard1995')} by a map that was measured beforehand and moved with the head, with the signal's density restored, in the same interpolation."
    return text


def _motion(session: Session, cite: _Cited) -> str:
    """Describe how motion was measured without a decoder."""
    quality = session.summary.get("quality", {})
    found = quality.get("framewise_displacement_mm", {})
    text = (
        "During the run each volume was aligned to the first one by a rigid-body transformation (6 parameters, inverse-compositional Gauss-Newton "
        f"{cite('baker2004')} with robust weights {cite('beaton1974')}); framewise displacement (50 mm sphere {cite('power2012')})"
    )
    if found.get("mean") is not None:
        text += f" was {found['mean']:.2f} mm on average, {found['max']:.2f} mm at most"
    tsnr = f" Temporal signal-to-noise ratio inside the brain was {quality['tsnr']:.0f} (median)." if quality.get("tsnr") else ""
    return f"{text}.{_made(session, cite)}{tsnr} Volumes were kept as they came."


def _placement(session: Session, cite: _Cited) -> str:
    """Describe to what volumes were aligned, and how the decoder was placed on it."""
    found = [p for p in session.summary.get("placements", []) if not p["own_grid"]]
    if not found:
        return "Each volume was aligned to the decoder's reference"
    errors = " and ".join(f"{p['expected_error_mm']:.2f} mm" for p in found)
    kept = min(p["weight_kept"] for p in found)
    settings = session.settings["acquisition"]
    as_it_came = settings.get("echoes", 1) == 1 and not settings.get("distortion")
    return (
        f"{'The decoder had been made on another grid. It' if as_it_came else 'The decoder'} was placed on the mean of the run's first steady volumes by a rigid-body "
        f"transformation found from the images (local normalised cross-correlation {cite('avants2008')}; expected error {errors}), and its "
        f"map was carried to the run's grid ({kept:.0%} of its weight lay in the field of view). Each volume was aligned to that mean"
    )


def _decoding(session: Session, cite: _Cited) -> str:
    decoder = session.settings["decoder"]
    name = f"the weight map ‘{decoder['name']}’" if decoder["name"] else "a weight map"
    name = f"the sum of weight maps ‘{decoder['objective']}’" if decoder["objective"] else name
    if decoder["method"] == "peak":
        return (
            f"An image's score was the correlation, over the voxels of the decoder's mask, of {name} with the mean of the volumes within "
            f"{decoder['half_window_tr']} repetition times of {decoder['delay_s']:g} s after its onset, relative to a running baseline."
        )
    shape, named = {
        "canonical": ("the canonical double-gamma response", "friston1998"),
        "derivatives": ("the canonical double-gamma response with its temporal and dispersion derivatives", "friston1998"),
        "fir": ("a finite impulse response", "glover1999"),
    }[decoder["hrf"]]
    shape += f" {cite(named)}"
    drift = {"walk": "drift as a random walk", "cosine": "drift as cosines", "polynomial": "drift as polynomials"}[decoder["drift"]]
    terms = f"{decoder['motion_terms']} motion regressors" + (f" {cite('friston1996')}" if decoder["motion_terms"] == 24 else "")
    terms += _nuisance(session, cite) + _physiology(session, cite)
    what = (
        f"The projection of each volume on {name}"
        if decoder["method"] == "deconvolve"
        else f"Each voxel of the mask, and then the correlation of the resulting pattern with {name},"
    )
    return (
        f"{what} was modelled as the sum of the responses to all images so far ({shape}, {session.settings['presentation']['image_s']:g} s long), "
        f"{drift}, {terms} and autocorrelated noise. The amplitude of every image's response and its standard error were updated with every volume "
        f"(Kalman filter {cite('kalman1960')}, averaged over noise models {cite('hoeting1999')}), so that overlapping responses are separated. "
        f"An image was first scored {decoder['first_score_s']:g} s after its onset and revised from then on; the values reported are the last ones."
    )


def _physiology(session: Session, cite: _Cited) -> str:
    """Regressors that come from pulse and respiration, as a part of a list, where they were measured."""
    physio = session.settings.get("physio", {})
    sensors = [name for name, key in (("cardiac", "cardiac"), ("respiratory", "respiration")) if physio.get(key)]
    found = []
    if "retroicor" in physio.get("terms", ()):
        found += [f"{name} phases with their first harmonics {cite('glover2000')}" for name in sensors]
    if "respiratory" in sensors and "rvt" in physio["terms"]:
        found.append(f"respiration volume per time {cite('birn2006')}")
    if "cardiac" in sensors and "hrv" in physio["terms"]:
        found.append(f"heart rate {cite('chang2009')}")
    if not found:
        return ""
    there = session.nuisance[len(session.settings["decoder"].get("nuisance", ())) :] or [math.nan] * len(found)
    words = (f"{text} ({_probability(each)})" for text, each in zip(found, there, strict=False))
    return f", {', '.join(words)}, as pulse and respiration were known by the end of each volume, as far as the volumes showed it {cite('dickey1971')}"


def _probability(there: float) -> str:
    """Return how probable a group of terms was at the end."""
    return "not judged" if math.isnan(there) else f"probability {there:.2f} at the end"


def _nuisance(session: Session, cite: _Cited) -> str:
    """Nuisance terms of the volumes, as a part of a list."""
    decoder = session.settings["decoder"]
    if not (kinds := decoder["nuisance"]):
        return ""
    named = {
        "white_matter": "the mean of white matter",
        "csf": "the mean of cerebrospinal fluid",
        "acompcor": "five principal components of white matter and cerebrospinal fluid",
        "global": "the mean of the head",
    }
    words = []
    for kind, there in zip(kinds, session.nuisance or [math.nan] * len(kinds), strict=False):
        cited = f" {cite('behzadi2007')}" if kind == "acompcor" else ""
        words.append(f"{named[kind]}{cited} ({_probability(there)})")
    given = [f"{name} given as a mask" for name, key in (("white matter", "white_matter_mask"), ("fluid", "csf_mask")) if decoder[key]]
    source = " and ".join(given) or "compartments guessed from the brightness of the reference"
    return f", {', '.join(words)}, each as far as the volumes showed it {cite('dickey1971')} ({source}; scaled on the first 40 s)"


def _images(session: Session, cite: _Cited) -> str:
    g = session.settings["generator"]
    named = g["unclip_model_path"].rstrip("/").rpartition("/")[2]  # of several families: what painted says which
    if named:
        model = f"a latent diffusion model {cite('rombach2022')}: {named}"
    else:
        model = f"an unCLIP latent diffusion model {cite('ramesh2022', 'rombach2022')}: the built-in small one, which paints emoji"
    painted = f"Images were painted by {model}, from image embeddings {cite('radford2021')}"
    guidance = f"classifier-free guidance {g['guidance_scale']:g} {cite('ho2022')}" if g["guidance_scale"] != 1 else "no guidance"
    told = f" (on this run: {session.painter})" if session.painter else ""
    noise = "All images started from the same noise, so that a picture depends on its embedding alone." if g["same_noise"] else ""
    return f"{painted}, in {g['steps']} denoising steps, {guidance}, noise level {g['noise_level']}{told}. {noise}".strip()


def _safety(session: Session) -> str:
    safety = session.settings["safety"]
    if not session.gated:
        return "Pictures were shown as painted, without a check beforehand."
    filters = []
    if safety["avoid"]:
        filters.append(f"their own re-encoding had to keep a cosine distance of {safety['avoid_distance']:g} from content to be avoided")
    if safety["checker"]:
        filters.append("a CLIP safety checker had to pass them")
    if safety["filters"]:
        filters.append(f"filters of the site had to pass them ({', '.join(safety['filters'])})")
    judged = (
        f"Pictures were judged before they were shown: {'; '.join(filters)}. "
        if filters
        else "No filter judged the pictures before they were shown. "
    )
    refused = session.refused
    refused, taken = session.refused, session.taken_away
    replaced = (
        "the next candidate replaced it" if session.settings["evolution"]["schedule"] == "steady" else "the generation continued without it"
    )
    if filters:
        judged += f"{refused or 'None'} {'was' if refused < 2 else 'were'} refused; a refused picture was painted once more with other noise; if that was refused too, {replaced}. "
    if safety["keep_away"]:
        judged += f"Evolution kept a cosine distance of {safety['keep_away']:g} to refused pictures. "
    approval = {
        "none": "",
        "veto": "Each picture was shown before it was due to the operator, who saw no scores and could take it out. ",
        "each": "Each picture was shown only after the operator, who saw no scores, had approved it. ",
    }[safety["approval"]]
    away = f"Images taken away or refused by operator, participant or stimulus PC: {taken}; their scores were not used." if taken else ""
    return (judged + approval + away).strip()


def _evolution(session: Session, cite: _Cited) -> str:
    e, condition, images = session.settings["evolution"], session.condition, session.summary["images"]
    driven, named = {
        "brain": ("the decoded brain response", ()),
        "ratings": ("the participant's button-press ratings", ()),
        "physiology": ("the skin conductance response", ("boucsein2012",)),
        "sham": ("brain responses permuted among the images of the whole run (sham)", ()),
        "yoked": ("the scores of another session (yoked)", ()),
        "random": ("nothing: latents were drawn at random", ()),
        "blinded": ("(blinded until the end of the session)", ()),
    }[condition]
    strategy, cited = {
        "surrogate": (
            "a Bayesian model of all scores so far, from whose posterior new latents are drawn (Thompson sampling)",
            ("thompson1933",),
        ),
        "direct": (
            "a Bayesian model of the responses to all images so far, estimated together from the series of volumes without scores of single images, "
            "from whose posterior new latents are drawn (Thompson sampling)",
            ("thompson1933",),
        ),
        "truncation": (
            f"truncation selection: the weighted mean of the better half, mutated (standard deviation {e['mutation_sd']:g})",
            (),
        ),
        "cma": ("CMA-ES", ("hansen2001",)),
        "sepcma": ("separable CMA-ES", ("ros2008",)),
        "random": ("a normal distribution, independent of the scores", ()),
    }["random" if condition == "random" else e["strategy"]]
    driven += f" {cite(*named)}" if named else ""
    strategy += f" {cite(*cited)}" if cited else ""
    schedule = (
        f"Images were requested one by one, {e['prefetch']} ahead of the one shown, each from all {'volumes' if e['strategy'] == 'direct' else 'scores'} known by then"
        if e["schedule"] == "steady"
        else f"A generation was requested once all images of the one before were scored, or {e['score_deadline_s']:g} s after its last image"
    )
    probes = (
        f" Every {e['probe_every']}th image was one of {e['probes']} probes, which are not used for evolution." if e["probe_every"] else ""
    )
    continued = " Evolution continued from an earlier run." if e.get("continue_from") else ""
    if continued and e["strategy"] in ("surrogate", "direct") and condition != "random":
        continued += (
            f" Each run's {'responses' if e['strategy'] == 'direct' else 'scores'} had an offset, a unit, a noise level and a slow drift of "
            "their own, found together with the preference "
            f"{cite('patterson1971')}."
        )
    if continued and not e["probe_every"]:
        continued += " No probes were shown, so an absolute gain over the earlier run is not identified."
    return (
        f"Evolution was driven by {driven}. Candidates were points of a {e['latent_size']}-dimensional latent space of principal components of image "
        f"embeddings; the next ones came from {strategy}. {schedule}; a generation is {e['population']} images. {images['shown']} images were shown in "
        f"{len(session.generations)} generations.{probes}{continued} Seed {session.summary['seed']}."
    )


def _presentation(session: Session, cite: _Cited) -> str:
    p, images = session.settings["presentation"], session.summary["images"]
    errors = [t["onset_error"] for t in session.trials if t.get("onset_error") is not None]
    dropped = sum(int(t["dropped_frames"]) for t in session.trials if t.get("dropped_frames") is not None)
    jitter = f" to {p['washout_s'] + p['washout_jitter_s']:g}" if p["washout_jitter_s"] else ""
    rating = f", then up to {p['rating_window_s']:g} s to rate it" if session.settings["session"]["condition"] == "ratings" else ""
    shown_by = (
        "without a screen (simulated participant)" if session.presenter.startswith("headless") else f"with PsychoPy {cite('peirce2019')}"
    )
    screen = f" ({session.presenter})" if session.presenter else ""
    cadence = images["cadence_s"]
    pace = (
        f" Onset to onset took {cadence['p50']:.3f} s (median; {cadence['min']:.3f} to {cadence['max']:.3f})." if cadence.get("p50") else ""
    )
    bound = f", known to {1e3 * max(errors):.2f} ms or better" if errors and max(errors) > 0 else ""
    return (
        f"Each image was shown for {p['image_s']:g} s{rating}, followed by {p['washout_s']:g}{jitter} s of fixation, {shown_by}{screen}, after a baseline "
        f"of {p['baseline_s']:g} s from the scanner's first pulse. Onsets are times of screen flips on the clock of the computer that received the "
        f"volumes{bound} (clock offsets by round trips {cite('cristian1989')}). {dropped} frames were dropped. Where the next image was not ready, "
        f"fixation was held ({len(session.held_s)} times).{pace}"
    )

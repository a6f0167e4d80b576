"""Rules for combinations of keys in a session file."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import Any

from rtevo.config.keys import LONGEST_LABEL, MOST_IMAGES
from rtevo.config.sections import Acquisition, Config
from rtevo.objective import parse_objective
from rtevo.wire import PresentationSettings, WireError, is_loopback

KEYS = ("away_key", "participant_key", "stop_key")  # keys of [safety] that are sent to the presenter

OF_EVOLUTION = ("decoder", "evolution", "generator", "safety")  # sections that a localizer does not use: their files need not exist yet

MOST_TOGETHER = 600  # images whose responses are estimated together before each ask: 0.15 s

__all__ = ["is_localizer", "is_path", "paths", "presentation_settings", "presenter_is_outside", "together"]


def is_localizer(config: Config) -> bool:
    """Return whether this is a localizer: pictures of known categories, without evolution."""
    return config.session.task == "localizer"


def presenter_is_outside(config: Config) -> bool:
    """Return whether the presenter is started separately: on the stimulus PC, or in a rehearsal across two computers."""
    return config.acquisition.source == "watch" or bool(config.simulation.participant)


def is_path(spec: Field[Any], value: Any) -> bool:
    """Return whether the value of a key, or each value of a list, is a path."""
    kind = spec.metadata["path"]
    return bool(kind) and isinstance(value, str) and value not in ("", spec.default) and not ("number" in kind and value.isdecimal())


def paths(config: Config) -> Iterator[tuple[str, Field[Any], str]]:
    """Yield the paths in a configuration.

    Yields
    ------
    section : str
    spec : Field
        Of the key.
    value : str
    """
    for section in fields(config):
        table = getattr(config, section.name)
        for spec in fields(table):
            value = getattr(table, spec.name)
            for each in value if isinstance(value, tuple) else (value,):
                if is_path(spec, each):
                    yield section.name, spec, each


def together(config: Config, origin: str, base: Path) -> list[str]:
    """Return mistakes in combinations of keys, and paths that do not exist."""
    found: list[str] = []
    source, acquisition = config.acquisition.source, config.acquisition
    if not acquisition.folder and (source == "replay" or (source == "watch" and acquisition.delivery == "folder")):
        found.append(f"{origin} [acquisition] folder: expected a folder for source {source!r}, got none")
    if source == "replay" and acquisition.delivery == "push":
        found.append(f"{origin} [acquisition] delivery: expected folder or dicom for source 'replay', got 'push'")
    if source == "watch":
        if acquisition.tr_s == 0:
            found.append(f"{origin} [acquisition] tr_s: expected > 0 seconds for source 'watch', got 0")
        if not config.decoder.folder and not is_localizer(config):
            found.append(f"{origin} [decoder] folder: expected a decoder folder for source 'watch', got none")
        if config.session.speed != 1:
            found.append(f"{origin} [session] speed: expected 1 for source 'watch', got {config.session.speed:g}")
        found += _peers(acquisition, origin)
        if config.simulation.faults:
            found.append(f"{origin} [simulation] faults: expected none for source 'watch', got {config.simulation.faults!r}")
    if config.session.condition == "physiology" and (not config.bridge.osc or config.session.speed != 1):
        found.append(f"{origin} [bridge] osc: expected an address for condition 'physiology', and speed 1, got {config.bridge.osc!r}")
    participant = config.simulation.participant
    if participant and not is_loopback(participant) and not config.bridge.keys:
        found.append(f"{origin} [bridge] keys: expected a folder of keys for [simulation] participant {participant!r}, got none")
    if config.safety.approval != "none" and not config.console.port and not is_localizer(config):
        found.append(
            f"{origin} [safety] approval: {config.safety.approval!r} needs the operator's page, which shows the pictures: "
            "[console] port, or --console"
        )
    found += _physio(config, origin)
    found += _shown(config, origin)
    for key in ("participant", "session"):
        if len(label := getattr(config.session, key)) > LONGEST_LABEL:
            found.append(f"{origin} [session] {key}: expected at most {LONGEST_LABEL} characters, got {len(label)}")
    unused: tuple[str, ...] = ("localizer",)
    if is_localizer(config):
        unused = OF_EVOLUTION
        found += _localizer(config, origin)
    else:
        found += _generator(config, origin) + _evolution(config, origin) + _direct(config, origin) + _objective(config, origin)
    for section, spec, value in paths(config):
        if section in unused:
            continue
        later = (section, spec.name) == ("acquisition", "folder") and (source == "simulate" or acquisition.delivery != "folder")
        if not later and not _there(base / value, kind := spec.metadata["path"]):
            found.append(f"{origin} [{section}] {spec.name}: expected an existing {kind}, got {value!r}")
    return found


def _shown(config: Config, origin: str) -> list[str]:
    """Return settings that the presenter would refuse, in a run and between the runs of a visit."""
    mistakes: list[str] = []
    for visit in (False, True):
        try:
            presentation_settings(config, visit=visit)
        except WireError as error:
            mistakes += [mistake.replace("end_text", "between_text", 1) if visit else mistake for mistake in error.mistakes]
    return [f"{origin} {_where(mistake)}" for mistake in dict.fromkeys(mistakes)]


def _where(mistake: str) -> str:
    """Return a presenter's mistake with the section of its key."""
    name, _, rest = mistake.removeprefix("presentation ").partition(":")
    return f"[{'safety' if name in KEYS else 'presentation'}] {name}:{rest}"


def _there(path: Path, kind: str) -> bool:
    """Return whether the required object exists at a path."""
    try:
        return "new" in kind or (path.is_file() and "file" in kind) or (path.is_dir() and "folder" in kind)
    except OSError:  # the name is too long
        return False


def _generator(config: Config, origin: str) -> list[str]:
    """Return mistakes in combinations of keys in [generator]."""
    found, generator = [], config.generator
    if generator.unclip_model_path and not config.evolution.pca:
        found.append(f"{origin} [evolution] pca: expected the latent space of [generator] unclip_model_path, got none")
    for device in generator.devices:
        if device.startswith("dask://") and not is_loopback(device.removeprefix("dask://")) and not generator.workers_keys:
            found.append(f"{origin} [generator] workers_keys: expected a folder of keys (TLS) for {device}, got none")
    if generator.px and not generator.unclip_model_path:
        found.append(f"{origin} [generator] px: expected 0 for the built-in model, got {generator.px}")
    return found


def _physio(config: Config, origin: str) -> list[str]:
    """Find what does not go together in [physio]."""
    settings, found = config.physio, []
    wanted = {name: where for name in ("cardiac", "respiration", "trigger") if (where := getattr(settings, name))}
    outside = {name: where for name, where in wanted.items() if where != "simulated"}
    if "trigger" in wanted and not settings.measured:
        found.append(f"{origin} [physio] cardiac, respiration: expected one of these with trigger, got none")
    if len(outside) < len(wanted) and (config.acquisition.source != "simulate" or not config.simulation.physiology_percent):
        found.append(f"{origin} [physio]: 'simulated' expects source 'simulate' and [simulation] physiology_percent > 0")
    if wanted.get("trigger") == "simulated":
        found.append(f"{origin} [physio] trigger: expected none for a simulated participant, whose samples are timed")
    if outside and config.session.speed != 1:
        found.append(f"{origin} [session] speed: expected 1 with [physio] {next(iter(outside))}, got {config.session.speed:g}")
    if not settings.rate_hz and (without := [name for name, where in outside.items() if not where.startswith("lsl:")]):
        found.append(f"{origin} [physio] rate_hz: expected > 0 for {without[0]} = {outside[without[0]]!r}, got 0")
    return found


def _localizer(config: Config, origin: str) -> list[str]:
    """Return mistakes in combinations of keys in [localizer]."""
    if not config.localizer.folder and config.acquisition.source != "simulate":
        return [f"{origin} [localizer] folder: expected a folder of pictures for source {config.acquisition.source!r}, got none (--folder)"]
    return []


def _evolution(config: Config, origin: str) -> list[str]:
    """Return mistakes in combinations of keys in [evolution]."""
    found, evolution, condition = [], config.evolution, config.session.condition
    for wanted, key in (("yoked", "yoked_to"), ("blinded", "blinding_key")):
        if condition == wanted and not getattr(evolution, key):
            found.append(f"{origin} [evolution] {key}: expected a file for condition {wanted!r}, got none")
    if evolution.sealed and (condition != "blinded" or not evolution.blinding_secret):
        found.append(
            f"{origin} [evolution] sealed: expected condition 'blinded' and a blinding_secret, got {condition!r} and "
            f"{evolution.blinding_secret!r}"
        )
    for key, known in (("stop_gain", ("surrogate", "direct")), ("preference_half_life", ("surrogate",))):
        if (value := getattr(evolution, key)) and evolution.strategy not in known:
            found.append(f"{origin} [evolution] {key}: expected 0 for strategy {evolution.strategy!r}, got {value:g}")
    if (images := evolution.generations * evolution.population) > MOST_IMAGES:
        found.append(f"{origin} [evolution] generations, population: expected at most {MOST_IMAGES:,} images, got {images:,}")
    if evolution.strategy in ("cma", "sepcma") and min(evolution.population, evolution.latent_size) < 2:
        found.append(f"{origin} [evolution] strategy: {evolution.strategy!r} expects population and latent_size >= 2")
    return found


def _direct(config: Config, origin: str) -> list[str]:
    """Find what does not go with a strategy that looks at volumes."""
    if config.evolution.strategy != "direct":
        return []
    found, condition, decoder = [], config.session.condition, config.decoder
    why = "for strategy 'direct'"
    if condition in ("ratings", "physiology"):
        found.append(f"{origin} [evolution] strategy: expected 'surrogate' for condition {condition!r}, got 'direct', which uses volumes")
    wanted = (
        ("decoder", "method", "deconvolve"),
        ("decoder", "hrf", "canonical"),
        ("decoder", "drift", "walk"),
        ("decoder", "motion_terms", 6),
    )
    for section, key, value in (*wanted, ("evolution", "schedule", "steady")):
        if (own := getattr(getattr(config, section), key)) != value:
            found.append(f"{origin} [{section}] {key}: expected {value!r} {why}, got {own!r}")
    if decoder.nuisance:
        found.append(
            f"{origin} [decoder] nuisance: expected none {why}, which takes out motion and drift alone, got {', '.join(decoder.nuisance)}"
        )
    if "keep(" in decoder.objective or "rank(" in decoder.objective:
        found.append(f"{origin} [decoder] objective: expected a weighted sum of maps {why}, got {decoder.objective!r}")
    if (images := config.evolution.generations * config.evolution.population) > MOST_TOGETHER:
        found.append(f"{origin} [evolution] generations, population: expected at most {MOST_TOGETHER} images {why}, got {images}")
    return found


def _objective(config: Config, origin: str) -> list[str]:
    """Return mistakes in an objective over several maps, except unknown maps, which are found when the maps are read."""
    found, settings = [], config.decoder
    if not settings.objective:
        if settings.more_folders:
            found.append(f"{origin} [decoder] objective: expected one that names maps of more_folders, got none")
        return found
    try:
        parse_objective(settings.objective)
    except ValueError as problem:
        found.append(f"{origin} [decoder] objective: {problem}")
    if settings.name:
        found.append(f"{origin} [decoder] name: expected none with an objective, which names its maps, got {settings.name!r}")
    if not settings.folder:
        found.append(f"{origin} [decoder] folder: expected the folder of the objective's maps, got none")
    return found


def presentation_settings(config: Config, *, visit: bool = False) -> PresentationSettings:
    """Return a session's settings for the presenter.

    Parameters
    ----------
    config : Config
    visit : bool
        Another run may follow: the text between runs is shown at the end of this one.

    Raises
    ------
    WireError
        With all mistakes.
    """
    told = asdict(config.presentation)
    del told["washout_jitter_s"]
    between = told.pop("between_text")
    if visit:
        told["end_text"] = between
    told |= {name: getattr(config.safety, name) for name in KEYS}
    session, order = config.session, told.pop("rating_order")
    second = (session.run + sum(session.participant.encode())) % 2 == 1
    told["ratings_reversed"] = order == "descending" or (order == "counterbalanced" and second)
    if session.condition != "ratings" or is_localizer(config):
        told["rating_window_s"] = 0.0
    told["presses"] = is_localizer(config) and config.localizer.task != "none"
    return PresentationSettings(**told, speed=session.speed)


def _peers(acquisition: Acquisition, origin: str) -> list[str]:
    """Return a mistake if [acquisition] does not name the senders on the network."""
    if acquisition.delivery == "folder":
        return []
    if not acquisition.peers and not ipaddress.ip_address(acquisition.address).is_loopback:
        return [f"{origin} [acquisition] peers: expected at least one for address {acquisition.address!r}, got none"]
    if acquisition.delivery == "push" and (named := [peer for peer in acquisition.peers if not peer.startswith("@")]):
        return [f"{origin} [acquisition] peers: expected @ADDRESS for delivery 'push', got {named[0]!r}"]
    if acquisition.delivery == "push" and not acquisition.keys and not ipaddress.ip_address(acquisition.address).is_loopback:
        return [
            f"{origin} [acquisition] keys: expected a folder of keys for delivery 'push' at address {acquisition.address!r}, got none: "
            "make one with `python -m rtevo.bridge keys DIR --client SENDER`, or let scripts on this computer push to 127.0.0.1"
        ]
    return []

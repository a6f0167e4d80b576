"""Checks, decisions and records before the first process of a session starts.

The checks cover the recorded series, the decoder and its geometry, the image model, the latent space and the output folder.
:mod:`rtevo.preflight` calls the same functions, and also measures.
"""

from __future__ import annotations

import grp
import importlib.util
import math
import os
import resource
import secrets
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtevo.config import Config
from rtevo.errors import ConfigError, DataError
from rtevo.wire import KeyFile, WireError
from rtevo.wire.keys import SUPPORT_FILE

if TYPE_CHECKING:
    pass

__all__ = [
    "capacity",
    "check_again",
    "check_console",
    "check_decoder",
    "check_delivery",
    "check_group",
    "check_live",
    "check_open_files",
    "check_out",
    "check_participant",
    "check_space",
    "describe_source",
    "first_volume",
    "repetition_time",
]

SIMULATED_TR_S = 0.867
OPEN_FILES, MOST_OPEN_FILES = 256, 4096  # files that a process of a session may need; number requested, if the system permits it


def check_open_files() -> None:
    """Check that this process, and those that it starts, may open as many files as a session needs; raise the limit as far as permitted.

    Raises
    ------
    ConfigError
        The system permits fewer.
    """
    now, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN_FILES if allowed == resource.RLIM_INFINITY else min(allowed, MOST_OPEN_FILES)
    if now != resource.RLIM_INFINITY and now < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, allowed))
    if most < OPEN_FILES:
        raise ConfigError(
            f"this account may open {most} files in a process, expected at least {OPEN_FILES}: "
            "raise the limit (ulimit -Hn, /etc/security/limits.conf, LimitNOFILE of a service)"
        )


def check_out(wanted: str) -> Path:
    """Check that the session's folder does not exist yet; return the nearest existing folder above it."""
    out = Path(wanted or "sessions")
    try:
        there = out.exists() or out.is_symlink()
    except OSError as error:
        raise ConfigError(f"[record] out: {wanted!r} cannot be made: {error.strerror}") from None
    if wanted and there:
        raise ConfigError(f"[record] out: expected a folder that does not exist yet, got {wanted!r}: rtevo overwrites nothing")
    return next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())


def check_group(config: Config) -> int:
    """Check that the group with access to the session's folder is one of this user's; return its number, -1 for none."""
    name = config.record.group
    if not name:
        return -1
    try:
        number = grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise ConfigError(f"[record] group: expected a group of this computer, got {name!r}") from None
    if number not in (os.getegid(), *os.getgroups()) and os.geteuid() != 0:
        raise ConfigError(f"[record] group: expected a group that this user is in, got {name!r}")
    return number


def capacity(config: Config, source: Any) -> int:
    """Return the number of voxels of the largest possible volume."""
    if source is not None:
        return math.prod(source.grid.shape)
    if config.acquisition.source == "simulate":
        from rtevo.session.simulation import simulation

        return math.prod(simulation(config, SIMULATED_TR_S).grid.shape)
    return math.prod(config.acquisition.largest)


def check_again(config: Config, latent_space: Path) -> tuple[str, int, tuple[int, int]]:
    """Check the files of a resumed session; return condition, size of embeddings, and height and width of images.

    Raises
    ------
    RtevoError
        For any mistake.
    """
    from rtevo import generate
    from rtevo.latent import LatentSpace
    from rtevo.record.making import check_maps
    from rtevo.session import course
    from rtevo.session.safety import avoid_of, gate_of

    model = Path(config.generator.unclip_model_path) if config.generator.unclip_model_path else None
    embedding_size, image_size = generate.probe(model, config.generator.px)
    space = LatentSpace.load(latent_space)
    avoid = avoid_of(config, space, latent_space.parent)
    condition = course.check(config, space, avoid)
    gate_of(config, avoid)
    check_delivery(config)
    check_maps(config)
    check_live(config)
    return condition, embedding_size, image_size


def check_live(config: Config) -> None:
    """Check that streams of the Lab Streaming Layer can be opened, if requested.

    Raises
    ------
    ConfigError
        The streams cannot be opened.
    """
    if not config.record.lsl:
        return
    try:
        import pylsl  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: no liblsl
        raise ConfigError(f"[record] lsl: live streams need the package pylsl (pip install 'rtevo[lsl]'): {error}") from None


def check_console(config: Config) -> str:
    """Check that the operator's page can be served; return the token that browsers need, empty for none."""
    settings = config.console
    if not settings.port:
        return ""
    if importlib.util.find_spec("nicegui") is None:
        raise ConfigError("[console] port: the console needs the package nicegui (pip install 'rtevo[console]')")
    try:
        with socket.create_server((settings.address, settings.port), family=socket.AF_INET6 if ":" in settings.address else socket.AF_INET):
            pass
    except OSError as error:
        raise ConfigError(f"[console] port: {settings.address}:{settings.port} cannot be listened at: {error.strerror}") from None
    return secrets.token_urlsafe(32)  # on loopback too: other users of this computer can reach it


def check_delivery(config: Config) -> None:
    """Check that volumes can arrive over the network, and that the faults of a rehearsal are valid."""
    from rtevo.ingest.receiver import check_listening
    from rtevo.simulate.faults import Faults

    settings, dicom = config.acquisition, config.acquisition.delivery == "dicom"
    try:
        faults = Faults.parse(config.simulation.faults)
        if settings.delivery != "folder":
            faults.check_sent()
    except ConfigError as error:
        raise ConfigError([f"[simulation] {mistake}" for mistake in error.mistakes]) from None
    if settings.delivery == "push" and settings.keys:
        try:
            KeyFile.read(Path(settings.keys) / SUPPORT_FILE, "support")
        except WireError as error:
            raise ConfigError(f"[acquisition] keys: {error}") from None
    if settings.delivery != "folder":
        try:
            check_listening(settings.address, settings.port if settings.source == "watch" else 0, dicom=dicom)
        except DataError as error:
            raise ConfigError(f"[acquisition] delivery = {settings.delivery!r}: {error}") from None


def check_space(config: Config, embedding_size: int) -> Any:
    """Load the session's latent space, and check that it fits the model."""
    from rtevo.generate import TINY_LATENT_SPACE
    from rtevo.latent import LatentSpace

    settings = config.evolution
    file = Path(settings.pca) if settings.pca else TINY_LATENT_SPACE
    space = LatentSpace.load(file)
    if space.embedding_size != embedding_size:
        raise ConfigError(
            f"[evolution] pca: expected a space of {embedding_size}-d embeddings (the model), got {space.embedding_size}-d: {file}"
        )
    if space.latent_size < settings.latent_size:
        raise ConfigError(
            f"[evolution] latent_size: expected at most the {space.latent_size} components of {file}, got {settings.latent_size}"
        )
    try:
        return space.first(settings.latent_size).scaled(settings.latent_scaling)
    except DataError as problem:
        raise ConfigError(f"[evolution] latent_scaling = {settings.latent_scaling!r}: {settings.pca}: {problem}") from None


def check_participant(config: Config) -> None:
    """Check the simulated participant's preference, and the position of the head today."""
    from rtevo.session.simulation import simulation

    if config.acquisition.source == "simulate":
        try:
            simulated = simulation(config, SIMULATED_TR_S)
        except ConfigError as error:
            raise ConfigError([f"[simulation] {mistake}" for mistake in error.mistakes]) from None
        simulated.preference()
        for name in simulated.areas:
            try:
                replace(simulated, prefers=name).preference()
            except ConfigError as error:
                raise ConfigError([mistake.replace("prefers", "areas", 1) for mistake in error.mistakes]) from None


def describe_source(config: Config) -> Any:
    """Return the description of a recorded series; None for other sources."""
    from rtevo.ingest import describe

    if config.acquisition.source != "replay":
        return None
    return describe(Path(config.acquisition.folder), series=config.acquisition.series or None)


def check_decoder(config: Config) -> tuple[Path, Any] | None:
    """Load the decoder that the session names, if any, with all maps of its objective."""
    from rtevo.decode import load_decoder

    settings = config.decoder
    if not settings.folder:
        return None
    folder = Path(settings.folder).resolve()
    return folder, load_decoder(folder, settings.name or None, settings.objective, settings.more_folders)


def repetition_time(config: Config, source: Any) -> float:
    """Return the session's repetition time, s."""
    given = config.acquisition.tr_s
    if source is None:
        return given or SIMULATED_TR_S
    if not given and not source.tr_s:
        raise DataError(f"{config.acquisition.folder}: expected a repetition time in the headers, found none: set [acquisition] tr_s")
    return float(given or source.tr_s)


def first_volume(folder: Path, uid: str) -> Any:
    """Return the first whole volume of a series."""
    from rtevo.ingest import FolderSource

    recording = FolderSource(folder, series=uid, patience_s=0, stall_s=0)
    volumes = recording.poll() + recording.finish()
    data = next((v.data for v in volumes if v.data is not None), None)
    if data is None:
        raise DataError(f"{folder}: expected all files of at least one volume of the series, found none")
    return data


# --- provenance ----------------------------------------------------------------------------------------------------------------------

"""What is checked, decided and written down before the first process of a session starts.

Everything that can be wrong is found here: the recorded series, the decoder and its geometry, the image model, the latent space, the
output folder. :mod:`rtevo.preflight` asks the same functions, and measures besides.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtevo import __version__
from rtevo.config import Config, absolute, dump
from rtevo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rtevo.decode import Decoder
    from rtevo.stages import Plan

__all__ = [
    "capacity",
    "check_again",
    "check_console",
    "check_decoder",
    "check_delivery",
    "check_out",
    "check_participant",
    "check_space",
    "clean_runtime",
    "describe_source",
    "first_volume",
    "hashes",
    "incoming",
    "make_decoder",
    "open_record",
    "prepare",
    "repetition_time",
    "runtime_folder",
]

SIMULATED_TR_S = 0.867


def check_out(wanted: str) -> Path:
    """See that the session's folder does not exist yet; give the nearest folder above it that does."""
    out = Path(wanted or "sessions")
    try:
        there = out.exists() or out.is_symlink()
    except OSError as error:
        raise ConfigError(f"[record] out: {wanted!r} cannot be made: {error.strerror}") from None
    if wanted and there:
        raise ConfigError(f"[record] out: expected a folder that does not exist yet, got {wanted!r}: nothing is ever overwritten")
    return next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())


def _new_folder(wanted: str) -> Path:
    """Make the session's folder; an existing one is never written to."""
    if wanted:
        nearest = check_out(wanted)
        out = Path(wanted)
        try:
            out.mkdir(parents=True)
        except OSError as error:
            for made in out.absolute().parents:  # those that were made on the way
                with suppress(OSError):
                    if nearest in made.parents:
                        made.rmdir()
            raise ConfigError(f"[record] out: {wanted!r} cannot be made: {error.strerror}") from None
        return out.resolve()
    day = time.strftime("%Y-%m-%d")
    number = 1
    while True:
        out = Path("sessions") / f"{day}-{number}"
        try:
            out.mkdir(parents=True)
            return out.resolve()
        except FileExistsError:
            number += 1


def prepare(config: Config) -> Plan:
    """Check everything and decide everything that the stages need to know.

    Raises
    ------
    RtevoError
        Whatever is wrong, before anything has started.
    """
    from rtevo import generate
    from rtevo.stages import evolution

    model = Path(config.generator.unclip_model_path) if config.generator.unclip_model_path else None
    embedding_size, image_size = generate.probe(model, config.generator.px)
    space = check_space(config, embedding_size)
    check_participant(config)
    condition = evolution.check(config, space)
    check_delivery(config)
    token = check_console(config)
    source = describe_source(config)
    loaded = check_decoder(config)
    tr_s = repetition_time(config, source)
    out = _new_folder(config.record.out)
    try:
        space.save(out / "latent_space.npz")
        folder, decoder = loaded or make_decoder(config, source, tr_s, out / "decoder")
        return make_plan(
            config, out, folder, decoder, source,
            tr_s=tr_s, condition=condition, embedding_size=embedding_size, image_size=image_size, token=token,
        )  # fmt: skip
    except BaseException:  # nothing has been recorded
        shutil.rmtree(out, ignore_errors=True)
        raise


def make_plan(config: Config, out: Path, folder: Path, decoder: Decoder, source: Any, **rest: Any) -> Plan:
    """Plan a session, or its next part, in its folder `out`, with the decoder that was loaded from `folder`."""
    from rtevo.stages import Plan

    runtime = runtime_folder()
    return Plan(
        name=secrets.token_hex(3),
        config=config,
        out=out,
        runtime=runtime,
        incoming=incoming(config, out, runtime),
        capacity=capacity(config, source),
        decoder=folder,
        decoder_name=decoder.name,
        attended=config.console.port > 0 or (sys.stdin is not None and sys.stdin.isatty()),
        **rest,
    )


def capacity(config: Config, source: Any) -> int:
    """Return the voxels of the largest volume that may come."""
    if source is not None:
        return math.prod(source.grid.shape)
    if config.acquisition.source == "simulate":
        from rtevo.stages.rehearsal import simulation

        return math.prod(simulation(config, SIMULATED_TR_S).grid.shape)
    return math.prod(config.acquisition.largest)


def check_again(config: Config, latent_space: Path) -> tuple[str, int, tuple[int, int]]:
    """Check what a session that is taken up again depends on; gives condition, size of embeddings, and height and width of images.

    Raises
    ------
    RtevoError
        With what is wrong.
    """
    from rtevo import generate
    from rtevo.latent import LatentSpace
    from rtevo.stages import evolution

    model = Path(config.generator.unclip_model_path) if config.generator.unclip_model_path else None
    embedding_size, image_size = generate.probe(model, config.generator.px)
    condition = evolution.check(config, LatentSpace.load(latent_space))
    check_delivery(config)
    return condition, embedding_size, image_size


def check_console(config: Config) -> str:
    """See whether the operator's page can be served; give the token that browsers need, empty for none."""
    from rtevo.console.guard import is_loopback, new_token

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
    return "" if is_loopback(settings.address) else new_token()


def check_delivery(config: Config) -> None:
    """See whether volumes can come over the network, and whether the faults of a rehearsal are some."""
    from rtevo.ingest.receiver import check_listening
    from rtevo.simulate.faults import Faults

    settings, dicom = config.acquisition, config.acquisition.delivery == "dicom"
    try:
        faults = Faults.parse(config.simulation.faults)
        if settings.delivery != "folder":
            faults.check_sent()
    except ConfigError as error:
        raise ConfigError([f"[simulation] {mistake}" for mistake in error.mistakes]) from None
    if settings.delivery != "folder":
        try:
            check_listening(settings.address, settings.port if settings.source == "watch" else 0, dicom=dicom)
        except DataError as error:
            raise ConfigError(f"[acquisition] delivery = {settings.delivery!r}: {error}") from None


def incoming(config: Config, out: Path, runtime: Path) -> Path:
    """Folder that volumes' files arrive in, or are kept in when they were received."""
    if config.acquisition.source != "watch":
        return runtime / "incoming"
    return Path(config.acquisition.folder).resolve() if config.acquisition.folder else out / "received"


def clean_runtime() -> list[str]:
    """Remove the folders that killed sessions have left, and give their names."""
    removed = []
    for left in Path(tempfile.gettempdir()).glob("rtevo-run-*-*"):
        with suppress(OSError, ValueError):
            os.kill(int(left.name.split("-")[2]), 0)
            continue
        shutil.rmtree(left, ignore_errors=True)
        removed.append(str(left))
    return removed


def runtime_folder() -> Path:
    """Make the folder of what lives only as long as the session; remove what killed sessions have left."""
    clean_runtime()
    runtime = Path(tempfile.mkdtemp(prefix=f"rtevo-run-{os.getpid()}-"))
    (runtime / "incoming").mkdir()
    return runtime


def check_space(config: Config, embedding_size: int) -> Any:
    """Load the session's latent space, and see that it fits the model."""
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
    """See that there is what the simulated participant is to prefer, and that it is clear where the head lies today."""
    from rtevo.stages.rehearsal import simulation

    if config.acquisition.source == "simulate":
        try:
            simulated = simulation(config, SIMULATED_TR_S)
        except ConfigError as error:
            raise ConfigError([f"[simulation] {mistake}" for mistake in error.mistakes]) from None
        simulated.preference()


def describe_source(config: Config) -> Any:
    """Look at a recorded series; None for the other sources."""
    from rtevo.ingest import describe

    if config.acquisition.source != "replay":
        return None
    return describe(Path(config.acquisition.folder), series=config.acquisition.series or None)


def check_decoder(config: Config) -> tuple[Path, Any] | None:
    """Load the decoder that the session names, if any."""
    from rtevo.decode import Decoder

    if not config.decoder.folder:
        return None
    folder = Path(config.decoder.folder).resolve()
    return folder, Decoder.load(folder, config.decoder.name or None)


def repetition_time(config: Config, source: Any) -> float:
    """Give the session's repetition time, s."""
    given = config.acquisition.tr_s
    if source is None:
        return given or SIMULATED_TR_S
    if not given and not source.tr_s:
        raise DataError(f"{config.acquisition.folder}: the headers hold no repetition time; set [acquisition] tr_s")
    return float(given or source.tr_s)


def make_decoder(config: Config, source: Any, tr_s: float, folder: Path) -> tuple[Path, Any]:
    """Make the decoder of a session that names none: from the simulated participant's localizer, or a map to try a replay with."""
    from rtevo.decode import write_decoder

    if config.acquisition.source == "simulate":
        from rtevo import simulate
        from rtevo.stages.rehearsal import simulation

        made = simulate.make_decoder(simulation(config, tr_s))
        settings = {**made.settings, "tr_s": tr_s, "participant": config.session.participant}
        arrays = (made.reference, made.mask, made.weights, made.grid.affine)
        return folder, write_decoder(folder, "liking", *arrays, settings, made.noise_sd)
    return folder, _demonstration(config, source, folder)


def first_volume(folder: Path, uid: str) -> Any:
    """Read the first whole volume of a series."""
    from rtevo.ingest import FolderSource

    recording = FolderSource(folder, series=uid, patience_s=0, stall_s=0)
    volumes = recording.poll() + recording.finish()
    data = next((v.data for v in volumes if v.data is not None), None)
    if data is None:
        raise DataError(f"{folder}: holds no whole volume of the series: expected all of a volume's files")
    return data


def _demonstration(config: Config, source: Any, folder: Path) -> Any:
    """Write a decoder with a smooth random map on the recording's first volume: its scores mean nothing, but everything runs."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    from rtevo.decode import write_decoder
    from rtevo.realign import brain_mask

    reference = first_volume(Path(config.acquisition.folder), source.uid)
    mask = brain_mask(reference, source.grid.affine)
    rng = np.random.default_rng(config.session.seed)
    weights = gaussian_filter(rng.standard_normal(reference.shape), 6 / source.grid.voxel_size_mm)
    settings = {"kind": "demonstration: a random map; its scores mean nothing", "seed": config.session.seed}
    return write_decoder(folder, "demonstration", reference, mask, weights / weights.std(), source.grid.affine, settings)


# --- provenance ----------------------------------------------------------------------------------------------------------------------


def _hash(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode() if path.is_dir() else b"")
            with file.open("rb") as handle:
                while chunk := handle.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def hashes(out: Path, config: Config, decoder: Path) -> dict[str, str]:
    """Give the SHA-256 of what a session depends on, by what it is called in messages."""
    from rtevo.generate import TINY_UNCLIP

    model = Path(config.generator.unclip_model_path) if config.generator.unclip_model_path else TINY_UNCLIP
    return {
        "session": _hash(out / "session.toml"),
        "decoder": _hash(decoder),
        "latent_space": _hash(out / "latent_space.npz"),
        "model": _hash(model),
    }


def _machine() -> dict[str, Any]:
    """Say on what the session ran."""
    words = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    processor = next((line.partition(":")[2].strip() for line in words if line.startswith("model name")), platform.processor())
    gpus: list[str] = []
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        gpus = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpus": os.cpu_count(), "processor": processor, "memory_bytes": memory, "gpus": gpus}


def _provenance(plan: Plan) -> dict[str, Any]:
    packages = ("numpy", "numba", "torch", "diffusers", "transformers", "pydicom", "nibabel", "pyzmq", "posix_ipc")
    return {
        "rtevo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **_machine(),
        "packages": {name: metadata.version(name) for name in packages},
        "sha256": hashes(plan.out, plan.config, plan.decoder),
    }


def open_record(plan: Plan) -> None:
    """Write what is known before the first volume: the resolved session file, versions and hashes, the log's first record."""
    from rtevo.record import LOG, SCHEMA, LogWriter, reserve

    reserve(plan.out)
    config = absolute(
        replace(
            plan.config, acquisition=replace(plan.config.acquisition, tr_s=plan.tr_s), record=replace(plan.config.record, out=str(plan.out))
        )
    )
    if not plan.part:
        (plan.out / "session.toml").write_text(dump(config), encoding="utf-8")
    provenance = _provenance(plan)
    name = f"provenance-{plan.part}.json" if plan.part else "provenance.json"
    (plan.out / name).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    with LogWriter(plan.out / LOG) as log:
        log.append(
            "start",
            {
                "schema": SCHEMA,
                "part": plan.part,
                "first_volume": plan.first_volume,
                "decoder_state": ("rebaselined" if plan.rebaseline else "kept") if plan.part else "new",
                "sha256": provenance["sha256"],
                "rtevo": __version__,
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "participant": config.session.participant,
                "condition": config.session.condition,
                "source": config.acquisition.source,
                "seed": config.session.seed,
                "speed": config.session.speed,
                "tr_s": plan.tr_s,
                "cadence_s": config.presentation.image_s + config.presentation.washout_s,
                "settings": asdict(config),
                "provenance": provenance,
            },
        )

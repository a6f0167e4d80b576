"""Preparation of a session before its first process starts: its folder, its decoder, its plan."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtevo.config import Config, is_localizer
from rtevo.errors import ConfigError
from rtevo.record.making import check_maps, keep_maps
from rtevo.session.checks import (
    capacity,
    check_console,
    check_decoder,
    check_delivery,
    check_group,
    check_open_files,
    check_out,
    check_participant,
    check_space,
    describe_source,
    first_volume,
    repetition_time,
)
from rtevo.session.counting import SESSIONS, default_folder
from rtevo.session.plan import Plan, Visit
from rtevo.session.provenance import model_hash

if TYPE_CHECKING:
    from rtevo.decode import Decoder

__all__ = ["attended", "clean_runtime", "incoming", "make_decoder", "make_plan", "new_folder", "prepare", "runtime_folder"]


def new_folder(wanted: str, group: int = -1) -> Path:
    """Make the session's folder, which must not exist yet. Only its owner, and `group`, can read it."""
    out = _made(wanted)
    if group >= 0:
        os.chown(out, -1, group)
        out.chmod(0o2750)  # new files in it belong to the group too
    return out


def _made(wanted: str) -> Path:
    if wanted:
        nearest = check_out(wanted)
        out = Path(wanted)
        try:
            out.mkdir(mode=0o700, parents=True)
        except OSError as error:
            for made in out.absolute().parents:  # parent folders that were made too
                with suppress(OSError):
                    if nearest in made.parents:
                        made.rmdir()
            raise ConfigError(f"[record] out: {wanted!r} cannot be made: {error.strerror}") from None
        return out.resolve()
    day = time.strftime("%Y-%m-%d")
    number = 1
    while True:
        out = SESSIONS / f"{day}-{number}"
        try:
            out.mkdir(mode=0o700, parents=True)
            return out.resolve()
        except FileExistsError:
            number += 1


def prepare(config: Config, session_file: Path | None = None, visit: Visit | None = None, before: Plan | None = None) -> Plan:
    """Check a session, and make the plan for its stages.

    Parameters
    ----------
    config : Config
    session_file : Path, optional
        File of the configuration.
    visit : Visit, optional
        Its place in a visit.
    before : Plan, optional
        Plan of the previous run in the same visit: the operator's page keeps its address, and slow work is not repeated (the model's
        fingerprint, a decoder made by the session).

    Raises
    ------
    RtevoError
        For any mistake, before a process has started.
    """
    import numpy as np

    from rtevo import generate
    from rtevo.session import course
    from rtevo.session.localizer import prepare_localizer
    from rtevo.session.safety import AVOIDED, avoid_of, gate_of
    from rtevo.session.takeover import before_of, keep

    if is_localizer(config):
        return prepare_localizer(config, session_file)
    check_open_files()
    model = Path(config.generator.unclip_model_path) if config.generator.unclip_model_path else None
    embedding_size, image_size = generate.probe(model, config.generator.px)
    space = check_space(config, embedding_size)
    check_participant(config)
    avoid = avoid_of(config, space)
    condition = course.check(config, space, avoid)
    gate_of(config, avoid)
    check_delivery(config)
    check_maps(config)
    token = before.token if before is not None and before.config.console == config.console else check_console(config)
    source = describe_source(config)
    loaded = check_decoder(config)
    tr_s = repetition_time(config, source)
    course.check_partner(config, tr_s)
    same_model = before is not None and before.config.generator == config.generator
    model_sha256 = before.model_sha256 if before is not None and same_model else model_hash(config)
    group = check_group(config)
    out = new_folder(config.record.out or str(default_folder(config) or ""), group)
    try:
        space.save(out / "latent_space.npz")
        if avoid is not None:
            np.save(out / AVOIDED, avoid.rows.astype(np.float32))
        folder, decoder = loaded or _same_decoder(config, before, out) or make_decoder(config, source, tr_s, out / "decoder")
        before_of(config, decoder, tr_s)
        if visit is not None or config.decoder.continue_from:
            config = keep(config, out)
        config = keep_maps(config, out)
        return make_plan(
            config, out, folder, decoder, source,
            tr_s=tr_s, condition=condition, embedding_size=embedding_size, image_size=image_size, token=token,
            session_file=session_file, model_sha256=model_sha256, visit=visit,
        )  # fmt: skip
    except BaseException:  # nothing has been recorded
        shutil.rmtree(out, ignore_errors=True)
        raise


def make_plan(config: Config, out: Path, folder: Path, decoder: Decoder | None, source: Any, **rest: Any) -> Plan:
    """Return the plan of a session, or of its next part, in its folder `out`, with the decoder from `folder`; a localizer has none."""
    runtime = runtime_folder()
    return Plan(
        name=secrets.token_hex(3),
        config=config,
        out=out,
        runtime=runtime,
        incoming=incoming(config, out, runtime),
        capacity=capacity(config, source),
        decoder=folder,
        decoder_name=decoder.name if decoder is not None and decoder.goal is None else None,
        maps=() if decoder is None or decoder.goal is None else decoder.goal.maps,
        attended=attended(config),
        **rest,
    )


def attended(config: Config) -> bool:
    """Return whether a person can answer questions, at the console or at the terminal."""
    return config.console.port > 0 or (sys.stdin is not None and sys.stdin.isatty())


def incoming(config: Config, out: Path, runtime: Path) -> Path:
    """Return the folder in which volumes' files arrive, or in which received files are kept."""
    if config.acquisition.source != "watch":
        return runtime / "incoming"
    return Path(config.acquisition.folder).resolve() if config.acquisition.folder else out / "received"


def clean_runtime() -> list[str]:
    """Remove the folders of killed sessions, and return their names."""
    removed = []
    for left in Path(tempfile.gettempdir()).glob("rtevo-run-*-*"):
        with suppress(OSError, ValueError):
            os.kill(int(left.name.split("-")[2]), 0)
            continue
        shutil.rmtree(left, ignore_errors=True)
        removed.append(str(left))
    return removed


def runtime_folder() -> Path:
    """Make the session's temporary folder; remove those of killed sessions."""
    clean_runtime()
    runtime = Path(tempfile.mkdtemp(prefix=f"rtevo-run-{os.getpid()}-"))
    (runtime / "incoming").mkdir()
    return runtime


def _same_decoder(config: Config, before: Plan | None, out: Path) -> tuple[Path, Any] | None:
    """Return the decoder that the previous run made, if this run would make the same; else None."""
    from rtevo.decode import load_decoder

    if before is None or before.decoder != before.out / "decoder":
        return None
    makes = [(c.simulation, c.acquisition, c.session.participant, c.session.seed) for c in (config, before.config)]
    if makes[0] != makes[1]:
        return None
    shutil.copytree(before.decoder, out / "decoder")
    return out / "decoder", load_decoder(out / "decoder")


def make_decoder(config: Config, source: Any, tr_s: float, folder: Path) -> tuple[Path, Any]:
    """Make the decoder of a session that names none: from the simulated participant's localizer, or a random map for a replay."""
    from rtevo.decode import write_decoder

    if config.acquisition.source == "simulate":
        from rtevo import simulate
        from rtevo.session.simulation import simulation

        made = simulate.make_decoder(simulation(config, tr_s))
        settings = {**made.settings, "tr_s": tr_s, "participant": config.session.participant}
        arrays = (made.reference, made.mask, made.weights, made.grid.affine)
        return folder, write_decoder(folder, "liking", *arrays, settings, made.noise_sd)
    return folder, _demonstration(config, source, folder)


def _demonstration(config: Config, source: Any, folder: Path) -> Any:
    """Write a decoder with a smooth random map on the recording's first volume, for trials: its scores mean nothing."""
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

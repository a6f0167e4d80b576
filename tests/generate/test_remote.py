"""Pictures painted by Dask workers on this computer: the same pictures, whatever becomes of a worker."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.errors import ConfigError, DataError, ModelError
from rtevo.generate import TINY_UNCLIP, GeneratorSettings, load, remote, worker
from rtevo.generate.hashes import fingerprint, hash_files

distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.xdist_group("dask"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of processes that are killed here
]

SETTINGS = GeneratorSettings(steps=2, fingerprint=fingerprint(hash_files(TINY_UNCLIP)))
ASKED = np.random.default_rng(0).standard_normal((4, 64), np.float32)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A scheduler with two workers; one that is killed stays dead."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as found:
        yield found


def settings_for(cluster: Any, **options: Any) -> GeneratorSettings:
    address = cluster.scheduler_address.partition("://")[2]
    return replace(SETTINGS, device=f"dask://{address}", **options)


def paint(settings: GeneratorSettings) -> list[Any]:
    with load(settings) as generator:
        generator.warm_up()
        return list(generator.paint(ASKED, np.arange(len(ASKED))))


@pytest.mark.slow
def test_workers_paint_what_is_painted_here_also_when_one_is_killed(cluster: Any) -> None:
    wanted = paint(replace(SETTINGS, device="cpu"))
    with load(settings_for(cluster, answer_s=20.0)) as generator:
        generator.warm_up()
        assert generator.description.startswith(f"dask, 2 workers of 127.0.0.1:{cluster.scheduler.port}: eager, cpu (1 threads)")
        stream = generator.paint(ASKED, np.arange(len(ASKED)))
        found = [next(stream)]
        nanny = next(iter(cluster.workers.values()))
        os.kill(nanny.pid, signal.SIGKILL)
        found += stream
        for a, b in zip(wanted, found, strict=True):
            assert (a.index, a.pixels.tobytes(), a.embedding.tobytes()) == (b.index, b.pixels.tobytes(), b.embedding.tobytes())
        with pytest.raises(ValueError, match=r"embeddings: expected shape \(n, 64\)"):
            generator.paint(ASKED[:, :5], [0])


@pytest.mark.slow
def test_a_picture_that_no_worker_paints_is_painted_here_if_that_is_allowed(cluster: Any, tmp_path: Path) -> None:
    other = shutil.copytree(TINY_UNCLIP, tmp_path / "other")
    (other / "vae" / "more.json").write_text("{}")
    wrong = settings_for(cluster, workers_model=str(other), answer_s=20.0)
    with (
        load(wrong) as generator,
        pytest.raises(ModelError, match=r"expected workers that can paint: .*the session's model .* copy the model"),
    ):
        generator.warm_up()
    with load(replace(wrong, fallback=True)) as generator:
        found = list(generator.paint(ASKED[:2], [0, 1]))
    wanted = paint(replace(SETTINGS, device="cpu"))
    assert [p.pixels.tobytes() for p in found] == [p.pixels.tobytes() for p in wanted[:2]]


@pytest.mark.slow
def test_a_worker_that_does_not_answer_in_time_costs_a_picture_its_deadline_only(cluster: Any) -> None:
    with (
        load(settings_for(cluster, answer_s=0.001)) as generator,
        pytest.raises(ModelError, match=r"no worker painted a picture: no answer within 0\.001 s"),
    ):
        list(generator.paint(ASKED[:1], [0]))


@pytest.mark.slow
def test_keys_are_needed_where_the_scheduler_wants_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    security = distributed.Security.temporary()
    for name, text in (("ca.pem", security.tls_ca_file), ("cert.pem", security.tls_client_cert), ("key.pem", security.tls_client_key)):
        (tmp_path / name).write_text(text)
    with distributed.LocalCluster(
        n_workers=1, processes=False, threads_per_worker=1, dashboard_address=":0", silence_logs=50, security=security, protocol="tls://"
    ) as cluster:
        settings = settings_for(cluster, answer_s=20.0)
        with load(replace(settings, workers_keys=tmp_path)) as generator:
            (painted,) = generator.paint(ASKED[:1], [0])
            assert painted.pixels.shape == (64, 64, 3)
        monkeypatch.setattr(remote, "ANSWER_S", 0.5)
        with pytest.raises(ModelError, match="expected a Dask scheduler, but none answers"):
            load(settings)
    (tmp_path / "key.pem").unlink()
    with pytest.raises(ConfigError, match=r"expected ca\.pem, cert\.pem, key\.pem; missing \['key\.pem'\]"):
        load(replace(settings, workers_keys=tmp_path))


def test_a_scheduler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_S", 0.5)
    with pytest.raises(ModelError, match=r"devices dask://127\.0\.0\.1:1: expected a Dask scheduler, but none answers"):
        load(replace(SETTINGS, device="dask://127.0.0.1:1"))


@pytest.mark.parametrize("data", [b"", b"\x05\x00\x00\x00[", b"\x02\x00\x00\x00[]", b"\xff\xff\xff\xff{}"])
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="expected a header of JSON"):
        worker.unpack(data)
    header, rest = worker.unpack(worker.pack({"seed": 3}, np.arange(3, dtype=np.uint8)))
    assert (header, bytes(rest)) == ({"seed": 3}, b"\x00\x01\x02")


@pytest.mark.parametrize("device", ["dask://", "dask://host", "dask://host:port", "dask:8786"])
def test_a_wrong_address_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="dask://HOST:PORT"):
        replace(SETTINGS, device=device)

"""Latent spaces made from embeddings, from pictures and from a pickled PCA."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from rtevo.errors import DataError
from rtevo.latent import LatentSpace, draw, fit
from rtevo.latent.__main__ import main

FLOAT32 = 1e-4  # of numbers around 1 that went through float32


def embeddings(n: int = 60, size: int = 8) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, size)) @ np.diag(np.linspace(3, 0.5, size)) + 5


def test_a_whitened_space_turns_its_embeddings_into_standard_normal_latents() -> None:
    rows = embeddings()
    space, explained = fit(rows, 5)
    latents = space.to_latent(rows)
    np.testing.assert_allclose(latents.mean(axis=0), 0, atol=FLOAT32)
    np.testing.assert_allclose(np.cov(latents.T), np.eye(5), atol=FLOAT32)
    expected = PCA(5, svd_solver="full").fit(rows).explained_variance_ratio_
    np.testing.assert_allclose(explained, expected)
    full, _ = fit(rows, 8)
    np.testing.assert_allclose(full.to_embedding(full.to_latent(rows)), rows, atol=FLOAT32 * 10)


def test_scalings_are_units_of_the_same_space(tmp_path: Path) -> None:
    rows = embeddings()
    plain, _ = fit(rows, 4, whitened=False)
    plain.save(tmp_path / "space.npz")
    loaded = LatentSpace.load(tmp_path / "space.npz")
    np.testing.assert_array_equal(loaded.sd, plain.sd)
    white = loaded.scaled("whitened")
    np.testing.assert_allclose(white.to_latent(rows) * white.sd, loaded.to_latent(rows), atol=FLOAT32)
    np.testing.assert_array_equal(white.scaled("plain").scale, 1)
    assert loaded.scaled("file") is loaded
    assert len(loaded.first(2).sd) == 2
    with pytest.raises(DataError, match="cannot be whitened"):
        LatentSpace(plain.mean, plain.components).scaled("whitened")
    with pytest.raises(ValueError, match="how: expected one of"):
        loaded.scaled("black")


@pytest.mark.parametrize(
    ("rows", "components", "message"),
    [
        (embeddings(5), 5, "expected 1 to 4 for 5 embeddings of 8 numbers"),
        (embeddings()[0], 1, r"expected finite numbers \(n, e\)"),
        (embeddings() * np.nan, 1, "expected finite numbers"),
        (embeddings(10, 2) @ np.ones((2, 6)), 2, "differ along 1 directions only"),
    ],
)
def test_what_makes_no_space_is_named(rows: np.ndarray, components: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(rows, components)


def test_the_figure_paints_each_component_at_its_standard_deviations() -> None:
    rows = embeddings()
    for whitened in (True, False):
        space, explained = fit(rows, 3, whitened)
        asked: list[np.ndarray] = []

        def paint(wanted: np.ndarray, asked: list[np.ndarray] = asked) -> list[np.ndarray]:
            asked.append(wanted)
            return [np.zeros((4, 4, 3), np.uint8)] * len(wanted)

        figure = draw(space, explained, paint, shown=2)
        assert len(figure.subfigs) == 2
        along = (asked[0] - space.mean) @ space.components.T / space.sd
        expected = np.zeros((10, 3))
        expected[:5, 0] = expected[5:, 1] = [-2, -1, 0, 1, 2]
        np.testing.assert_allclose(along, expected, atol=1e-3)


@pytest.mark.slow
def test_the_command_fits_a_folder_of_pictures_and_paints_along_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures" / "below").mkdir(parents=True)
    for k in range(6):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / ("below" if k % 2 else ".") / f"{k}.png")
    out = tmp_path / "space.npz"
    assert main(["fit", str(tmp_path / "pictures"), "--components", "2", "--out", str(out)]) == 0
    space = LatentSpace.load(out)
    assert space.latent_size == 2
    assert space.examples is not None
    assert set(space.examples.names) == {"0", "below/1", "2", "below/3", "4", "below/5"}
    np.testing.assert_allclose(space.examples.points.mean(axis=0), 0, atol=1e-3)  # centred as the space is, in float16
    assert "first    2:" in capsys.readouterr().out
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.size[0] == 1210
    assert main(["fit", str(tmp_path / "pictures"), "--components", "2", "--out", str(out)]) == 2
    assert "expected a new .npz file" in capsys.readouterr().err
    (tmp_path / "pictures" / "x.png").write_bytes(b"no picture")
    assert main(["fit", str(tmp_path / "pictures"), "--components", "2", "--out", str(tmp_path / "b.npz")]) == 2
    assert "x.png: expected a picture" in capsys.readouterr().err


def test_the_command_fits_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "rows.npy", embeddings())
    arguments = ["fit", str(tmp_path / "rows.npy"), "--components", "3", "--no-figure", "--out"]
    assert main([*arguments, str(tmp_path / "a.npz")]) == 0
    assert main([*arguments, str(tmp_path / "b.npz"), "--plain"]) == 0
    assert "in embedding units" in capsys.readouterr().out
    np.testing.assert_array_equal(LatentSpace.load(tmp_path / "b.npz").scale, 1)
    assert main(["fit", str(tmp_path / "none"), "--out", str(tmp_path / "c.npz")]) == 2
    assert "found neither" in capsys.readouterr().err


def test_a_pickled_pca_is_imported_and_what_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rtevo.decode.unpickle")
    rows = embeddings()
    for whiten in (False, True):
        found = PCA(4, whiten=whiten).fit(rows)
        (tmp_path / "pca.pkl").write_bytes(pickle.dumps(found))
        out = tmp_path / f"{whiten}.npz"
        assert main(["import", str(tmp_path / "pca.pkl"), "--out", str(out), "--no-figure"]) == 0, capsys.readouterr().err
        latents = np.random.default_rng(1).standard_normal((3, 4))
        np.testing.assert_allclose(LatentSpace.load(out).to_embedding(latents), found.inverse_transform(latents), atol=FLOAT32 * 10)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(print))
    assert main(["import", str(tmp_path / "bad.pkl"), "--out", str(tmp_path / "x.npz"), "--no-figure"]) == 2
    assert "refused: builtins.print" in capsys.readouterr().err
    (tmp_path / "ridge.pkl").write_bytes(pickle.dumps(Ridge().fit(rows, rows[:, 0])))
    assert main(["import", str(tmp_path / "ridge.pkl"), "--out", str(tmp_path / "x.npz"), "--no-figure"]) == 2
    assert "expected a fitted PCA, found Ridge" in capsys.readouterr().err

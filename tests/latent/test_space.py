"""Latent spaces: there and back, against scikit-learn's definition written out, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtevo.errors import DataError
from rtevo.latent import LatentSpace

SINGLE = 2e-5  # float32 results of products with up to 64 terms of order 1


@st.composite
def spaces(draw: st.DrawFn) -> LatentSpace:
    embedding_size = draw(st.integers(1, 40))
    space = LatentSpace.random(draw(st.integers(1, embedding_size)), embedding_size, draw(st.integers(0, 2**31)))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    return LatentSpace(rng.normal(size=embedding_size), space.components, rng.uniform(0.2, 3, space.latent_size))


@given(spaces(), st.integers(0, 5))
def test_there_and_back(space: LatentSpace, count: int) -> None:
    latents = np.random.default_rng(count).standard_normal((count, space.latent_size)).astype(np.float32)
    embeddings = space.to_embedding(latents)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (count, space.embedding_size)
    np.testing.assert_allclose(space.to_latent(embeddings), latents, rtol=1e-3, atol=20 * SINGLE)


@given(spaces())
def test_the_way_back_is_the_nearest_point(space: LatentSpace) -> None:
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal(space.embedding_size)
    projected = space.to_embedding(space.to_latent(embedding))
    residual = embedding - projected
    np.testing.assert_allclose(space.components @ residual, 0, atol=50 * SINGLE)


def test_same_as_a_principal_component_analysis() -> None:
    rng = np.random.default_rng(2)
    data = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12)) + 3
    mean = data.mean(axis=0)
    _, singular, rows = np.linalg.svd(data - mean, full_matrices=False)
    sd = singular[:5] / np.sqrt(199)
    plain, whitened = LatentSpace(mean, rows[:5]), LatentSpace(mean, rows[:5], sd)
    np.testing.assert_allclose(plain.to_latent(data), (data - mean) @ rows[:5].T, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(np.std(whitened.to_latent(data), axis=0, ddof=1), 1, rtol=1e-5)
    np.testing.assert_allclose(whitened.to_embedding(np.eye(5)[2]), mean + sd[2] * rows[2], rtol=1e-5, atol=1e-5)


def test_saving_and_loading(tmp_path: Path) -> None:
    space = LatentSpace.random(5, 16, seed=3)
    space.save(tmp_path / "space.npz")
    again = LatentSpace.load(tmp_path / "space.npz")
    for name in ("mean", "components", "scale"):
        np.testing.assert_array_equal(getattr(again, name), getattr(space, name))
    space.save(tmp_path / "twice.npz")
    assert (tmp_path / "twice.npz").read_bytes() == (tmp_path / "space.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["space.npz", "twice.npz"]


def test_scale_is_optional_in_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "pca.npz", mean=np.zeros(3, np.float16), components=np.eye(3)[:2], explained_variance=np.ones(2))
    space = LatentSpace.load(tmp_path / "pca.npz")
    np.testing.assert_array_equal(space.scale, [1, 1])
    np.testing.assert_array_equal(space.to_embedding([1.0, 2.0]), [1, 2, 0])


def test_random_is_repeatable_and_of_unit_variance() -> None:
    space = LatentSpace.random(100, 1024, seed=11)
    np.testing.assert_array_equal(space.components, LatentSpace.random(100, 1024, seed=11).components)
    assert not np.array_equal(space.components, LatentSpace.random(100, 1024, seed=12).components)
    embeddings = space.to_embedding(np.random.default_rng(0).standard_normal((200, 100)))
    assert embeddings.var() == pytest.approx(1, rel=0.05)


def test_arrays_cannot_be_changed_from_outside() -> None:
    components = np.eye(3)
    space = LatentSpace(np.zeros(3), components)
    components[0, 0] = 9
    assert space.components[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        space.mean[0] = 1


@pytest.mark.parametrize(
    ("mean", "components", "scale", "message"),
    [
        (np.zeros(3), np.eye(4), [], "expected components of 3 numbers"),
        (np.zeros(3), np.eye(3)[0], [], "components to be 2-D"),
        (np.zeros((1, 3)), np.eye(3), [], "mean to be 1-D"),
        (np.zeros(2), np.ones((3, 2)), [], "expected 1 to 2 components, got 3"),
        (np.zeros(3), np.full((1, 3), np.nan), [], "finite numbers in components, got 3"),
        (np.zeros(3), 2 * np.eye(3), [], "row 0 has length 2"),
        (np.zeros(2), [[1.0, 0.0], [0.6, 0.8]], [], r"rows 0 and 1 have the product 0\.6"),
        (np.zeros(3), np.eye(3), [1.0, 2.0], "scale of 3 numbers"),
        (np.zeros(3), np.eye(3), [1.0, 0.0, 1.0], "scales > 0, got 0 at component 1"),
        (np.zeros(3), np.eye(3) > 0, [], "real numbers, got bool"),
    ],
)
def test_what_is_not_a_latent_space_is_refused(mean: object, components: object, scale: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LatentSpace(mean, components, np.array(scale))  # type: ignore[arg-type]


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no such file"):
        LatentSpace.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="found something else"):
        LatentSpace.load(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"expected an \.npz file of plain arrays"):
        LatentSpace.load(tmp_path / "one.npy")
    np.savez(tmp_path / "half.npz", mean=np.zeros(3))
    with pytest.raises(DataError, match=r"expected arrays mean and components, found \['mean'\]"):
        LatentSpace.load(tmp_path / "half.npz")
    np.savez(tmp_path / "pickled.npz", mean=np.array([object()]), components=np.eye(3))
    with pytest.raises(DataError, match="plain arrays"):
        LatentSpace.load(tmp_path / "pickled.npz")
    np.savez(tmp_path / "bad.npz", mean=np.zeros(3), components=2 * np.eye(3))
    with pytest.raises(DataError, match=r"bad\.npz.*orthonormal"):
        LatentSpace.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "whole.npz", mean=np.zeros(3), components=np.eye(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    with pytest.raises(DataError, match=r"cut\.npz"):
        LatentSpace.load(tmp_path / "cut.npz")


def test_sizes_are_checked() -> None:
    space = LatentSpace.random(2, 5, seed=0)
    with pytest.raises(ValueError, match="latents: expected 2 numbers along the last axis"):
        space.to_embedding(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="embeddings: expected 5 numbers"):
        space.to_latent(np.zeros(2))
    with pytest.raises(ValueError, match="latent_size: expected 1 to 5"):
        LatentSpace.random(6, 5, seed=0)


def test_the_first_components_are_a_space_of_their_own() -> None:
    space = LatentSpace.random(5, 8, seed=3)
    latents = np.zeros((1, 5), np.float32)
    latents[0, :2] = (1.5, -2)
    np.testing.assert_array_equal(space.first(2).to_embedding(latents[:, :2]), space.to_embedding(latents))
    with pytest.raises(DataError, match="expected 1 to 5 components, asked for 6"):
        space.first(6)

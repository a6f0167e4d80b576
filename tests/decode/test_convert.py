"""Decoders from elsewhere: maps and models arrive whole, and hostile pickles arrive nowhere."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import nibabel as nib
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rtevo.decode import Decoder
from rtevo.decode.__main__ import main
from rtevo.decode.convert import convert_maps, convert_model, linear
from rtevo.decode.unpickle import _Refused, read
from rtevo.errors import DecoderError
from rtevo.records import Grid

SHAPE = (4, 5, 3)
ROUNDING = 1e-9  # relative: a chain multiplied out against the chain itself, float64


@pytest.fixture
def maps(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """Write a reference and a mask; give their paths and the mask."""
    rng = np.random.default_rng(0)
    mask = rng.random(SHAPE) < 0.6
    for name, data in (("ref.nii.gz", rng.random(SHAPE)), ("mask.nii.gz", mask)):
        nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([3.0, 3.0, 3.5, 1.0])), tmp_path / name)
    return tmp_path / "ref.nii.gz", tmp_path / "mask.nii.gz", mask


def data(voxels: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((60, voxels))
    return x, np.array(["face", "house", "body"])[np.arange(60) % classes]


MODELS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: LogisticRegression(),
    "pca-scaler-logistic": lambda: make_pipeline(PCA(6), StandardScaler(), LogisticRegression()),
    "whitened": lambda: make_pipeline(StandardScaler(), PCA(5, whiten=True), LinearDiscriminantAnalysis()),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("how", ["pickle 2", "pickle 5", "joblib", "joblib zlib", "pickle gzip", "pickle bz2"])
def test_models_decide_as_they_did(kind: str, how: str) -> None:
    x, y = data(20)
    model = MODELS[kind]().fit(x, y)
    buffer = io.BytesIO()
    if how.startswith("joblib"):
        joblib.dump(model, buffer, compress=("zlib", 3) if "zlib" in how else 0)
        content = buffer.getvalue()
    else:
        content = pickle.dumps(model, protocol=2 if how == "pickle 2" else 5)
        content = {"gzip": gzip.compress, "bz2": bz2.compress}.get(how.split()[1], bytes)(content)
    weights, intercept = linear(*read(content))
    np.testing.assert_allclose(x @ weights + intercept, model.decision_function(x), rtol=ROUNDING, atol=ROUNDING)


def test_labels_that_are_objects_and_one_class_of_several() -> None:
    x, y = data(20, classes=3)
    model = LogisticRegression().fit(x, y.astype(object))
    buffer = io.BytesIO()
    joblib.dump(model, buffer)
    for content in (buffer.getvalue(), pickle.dumps(model)):
        steps, arrays = read(content)
        weights, intercept = linear(steps, arrays, "house")
        decided = model.decision_function(x)
        np.testing.assert_allclose(x @ weights + intercept, decided[:, 2] - decided.mean(axis=1), rtol=ROUNDING, atol=ROUNDING)
        with pytest.raises(DecoderError, match=r"--class: expected one of body, face, house, got 'chair'"):
            linear(steps, arrays, "chair")
        with pytest.raises(DecoderError, match=r"has 3 classes; choose one with --class \(body, face, house\)"):
            linear(steps, arrays)


def test_a_model_becomes_a_decoder(maps: tuple[Path, Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, mask, inside = maps
    x, _ = data(int(inside.sum()))
    model = Ridge().fit(x, x[:, 0])
    joblib.dump(model, tmp_path / "fear.joblib")
    arguments = ["import", str(tmp_path / "fear.joblib"), "--reference", str(reference), "--mask", str(mask)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert f"decoder 'fear' ({int(inside.sum())} voxels)" in capsys.readouterr().out
    decoder = Decoder.load(tmp_path / "out")
    np.testing.assert_allclose(decoder.weights[inside], model.coef_, rtol=1e-6)
    assert decoder.settings["intercept"] == pytest.approx(model.intercept_)
    assert decoder.settings["steps"] == ["Ridge"]
    np.testing.assert_array_equal(decoder.mask, inside)


def test_maps_become_a_decoder(maps: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    reference, mask, inside = maps
    values = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    values[~inside] = np.nan
    nib.save(nib.Nifti1Image(values, np.diag([3.0, 3.0, 3.5, 1.0])), tmp_path / "fear_img.nii.gz")
    arguments = ["import", str(tmp_path / "fear_img.nii.gz"), "--reference", str(reference), "--mask", str(mask)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    decoder = Decoder.load(tmp_path / "out", "fear")
    np.testing.assert_array_equal(decoder.weights, np.where(inside, values, 0))
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 3.0, 3.5, 1.0])), tmp_path / "other.nii.gz")
    with pytest.raises(DecoderError, match=r"other.nii.gz: not on the grid of .*ref.nii.gz: voxels lie up to 3.00 mm apart"):
        convert_maps(reference, mask, tmp_path / "other.nii.gz", tmp_path / "out2", "other")
    assert not (tmp_path / "out2").exists()


def test_models_that_do_not_fit(maps: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    reference, mask, inside = maps
    x, y = data(7)
    for model, message in (
        (LogisticRegression().fit(x, y), f"expected a weight for each of the {int(inside.sum())} voxels of .*, found 7"),
        (LogisticRegression(), "expected a fitted linear model as its last step, found LogisticRegression without coef_"),
        (RandomForestClassifier(2).fit(x, y), r"refused: sklearn\.ensemble\._forest\.RandomForestClassifier"),
        (GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(x, y), r"refused: sklearn\.model_selection.*GridSearchCV"),
        ({"weights": np.ones(3)}, r"refused: a dict \(expected a fitted estimator of scikit-learn\)"),
    ):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
        with pytest.raises(DecoderError, match=message):
            convert_model(tmp_path / "model.pkl", reference, mask, tmp_path / "out", "x")
    with pytest.raises(DecoderError, match="expected a pickled model, found no such file"):
        convert_model(tmp_path / "none.pkl", reference, mask, tmp_path / "out", "x")
    assert not (tmp_path / "out").exists()


class _Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile(trace: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would leave a trace if they ran, and what is said of them."""
    touch = f"touch {trace}"
    system = _Calls(os.system, touch)
    model = LogisticRegression()
    model.coef_ = system  # hidden deep in something harmless
    array = io.BytesIO()
    joblib.dump({"labels": np.array([_Calls(os.system, touch)], object)}, array)
    by_hand = f"cposix\nsystem\n(S'{touch}'\ntR.".encode()
    state = b"\x80\x04cnumpy\nndarray\n\x81}(X\x01\x00\x00\x00aX\x01\x00\x00\x00bub."
    return {
        "system": (pickle.dumps(system), "posix.system"),
        "protocol 0": (by_hand, "posix.system"),
        "in a model": (pickle.dumps(model), "posix.system"),
        "in an array": (pickle.dumps(np.array([system], object)), "posix.system"),
        "in joblib's array": (array.getvalue(), "posix.system"),
        "compressed": (zlib.compress(pickle.dumps(system)), "posix.system"),
        "eval": (pickle.dumps(_Calls(eval, f"__import__('os').system({touch!r})")), "builtins.eval"),
        "getattr": (b"\x80\x04cbuiltins\ngetattr\n.", "builtins.getattr"),
        "dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93.", "numpy.ndarray.__new__"),
        "numpy's own loader": (b"cnumpy\nload\n(S'x.npy'\ntR.", "numpy.load"),
        "an estimator's helper": (b"csklearn.utils\n_joblib\n.", "sklearn.utils._joblib"),
        "wrong module": (b"cos\nPCA\n.", "os.PCA"),
        "persistent": (b"Pfile\n.", "not a model that can be read"),
        "extension": (b"\x80\x04\x82\x01.", "not a model that can be read"),
        "huge array": (
            pickle.dumps(_Calls(np.zeros(0).__reduce__()[0], np.ndarray, (1 << 40,), b"b")),
            "(not a model that can be read .*Error|an array of shape .* before its numbers)",
        ),
        "of another type": (pickle.dumps(_Calls(np.zeros(0).__reduce__()[0], np.recarray, (1,), b"b")), "numpy.recarray|numpy.rec"),
        "state": (state, "not a model that can be read"),
        "cut short": (pickle.dumps(LogisticRegression())[:40], "not a model that can be read"),
        "nonsense": (b"\x00" * 100, "not a model that can be read"),
        "empty": (b"", "not a model that can be read"),
        "bomb": (gzip.compress(b"\x80\x04" + b"N0" * (1 << 20)), "not a model that can be read"),
        "length": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 45) + b"x.", "not a model that can be read"),
    }


def joblib_array(dtype: Any, shape: Any, payload: bytes, **more: Any) -> bytes:
    """A joblib file of one array with these fields, its dtype's state included."""
    wrapper = _Calls(joblib.numpy_pickle.NumpyArrayWrapper, np.ndarray, shape, "C", dtype)
    state = {"subclass": np.ndarray, "shape": shape, "order": "C", "dtype": dtype, "allow_mmap": False, **more}
    wrapper.call = (*wrapper.call, state)
    model = pickle.dumps(wrapper, protocol=2)[2:-1] + b"\0" + payload  # BUILD comes last: padding and numbers follow
    return b"\x80\x02csklearn.decomposition\nPCA\n)\x81}X\x05\x00\x00\x00coef_" + model + b"sb."


class _Dtype:
    """Pickles as a dtype with a state of its own."""

    def __init__(self, spec: Any, state: Any) -> None:
        self.spec, self.state = spec, state

    def __reduce__(self) -> Any:
        return np.dtype, (self.spec, False, True), self.state


POINTER = b"\x41" * 16  # an address of the file
OBJECT_FIELD = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)  # flags 0: it does not say that it holds objects
UNSAFE = {
    "a field of objects": lambda: joblib_array(_Dtype("V8", OBJECT_FIELD), (2,), POINTER),
    "a field of objects, put into plain numbers": lambda: joblib_array(_Dtype("f8", OBJECT_FIELD), (2,), POINTER),
    "objects that say they are none": lambda: pickle.dumps(
        _Calls(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b"b")
    )[:-1] + pickle.dumps((1, (2,), _Dtype("O8", (3, "|", None, None, None, -1, -1, 0)), False, POINTER))[2:-1] + b"b.",
    "an array of numbers before its numbers": lambda: pickle.dumps(_Calls(np.zeros(0).__reduce__()[0], np.ndarray, (1000,), b"b")),
    "an array over a buffer": lambda: pickle.dumps(_Calls(np.ndarray, (4,), "f8", bytes(32), 0, (-8,))),
    "a shape that is longer than the file": lambda: joblib_array(np.dtype("f8"), (1 << 40,), bytes(16)),
    "a shape below zero": lambda: joblib_array(np.dtype("f8"), (-4,), bytes(16)),
    "a state of a type": lambda: b"\x80\x04cnumpy\nfloat64\n}(X\x01\x00\x00\x00aK\x01ub.",
    "a state of an estimator's class": lambda: b"\x80\x04csklearn.decomposition\nPCA\n}(X\x04\x00\x00\x00nameX\x01\x00\x00\x00xub.",
    "a state of a function": lambda: b"\x80\x04c_codecs\nencode\n}(X\x01\x00\x00\x00aK\x01ub.",
    "another method of joblib's array": lambda: joblib_array(np.dtype("f8"), (2,), bytes(16), read_array=1),
    "dates": lambda: pickle.dumps(np.array(["2026-01-01"], "M8[D]")),
    "a dtype by code": lambda: pickle.dumps(_Calls(np.dtype, "(2,3")),
    "a chain without end": lambda: pickle.dumps(nested(30)),
}  # fmt: skip


def nested(levels: int) -> Any:
    model: Any = PCA()
    for _ in range(levels):
        model = make_pipeline(model, model)
    return model


@pytest.mark.parametrize("made", UNSAFE.values(), ids=UNSAFE)
def test_only_plain_numbers_are_read_and_nothing_gets_a_state_that_has_none(made: Callable[[], bytes]) -> None:
    with pytest.raises(_Refused):
        read(made())


def test_hostile_pickles_are_refused_by_name_and_do_nothing(maps: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    reference, mask, _ = maps
    trace = tmp_path / "trace"
    cases = hostile(trace)
    for name, (content, message) in cases.items():
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of many types; what the user is told comes below
            read(content)
        assert not trace.exists(), name
        if message != "not a model that can be read" and isinstance(caught.value, _Refused):
            assert caught.match(message), name
    for name in ("system", "in joblib's array", "huge array", "nonsense", "persistent"):  # the whole way, in a process of its own
        content, message = cases[name]
        (tmp_path / "model.pkl").write_bytes(content)
        with pytest.raises(DecoderError, match=f"model.pkl: refused: {message}"):
            convert_model(tmp_path / "model.pkl", reference, mask, tmp_path / "out", "x")
        assert not trace.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_pictures_show_left_at_the_left_however_the_voxels_are_stored(flips: tuple[int, ...], axes: tuple[int, ...]) -> None:
    from rtevo.decode.carry import same_voxels
    from rtevo.decode.figures import _ras

    affine = np.eye(4)
    affine[:3, :3] = (np.diag([3.0, 3.2, 4.0]) @ np.diag(flips))[:, list(axes)]
    affine[:3, 3] = (5, -7, 11)
    grid = Grid((4, 5, 6), affine)
    order = same_voxels(grid, _ras(grid))
    assert order is not None
    place = np.stack([*np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), np.ones(grid.shape)], axis=-1)
    world = place @ affine.T
    for k in range(3):
        assert (np.diff(order(world[..., k]), axis=k) > 0).all()  # to the right, to the front, up

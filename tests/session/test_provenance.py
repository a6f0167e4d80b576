"""What a session says it was made with."""

from __future__ import annotations

from importlib import metadata

import numpy as np

from rtevo.session.provenance import PACKAGES, _blas, _installed, _source


def test_versions_of_what_is_installed_are_those_that_python_says() -> None:
    found = _installed()
    for name in ("numpy", "scipy", "torch", "scikit-learn", "pillow", "pyzmq"):
        assert found[name.replace("-", "_")] == metadata.version(name)
    assert {"numpy", "torch", "diffusers", "pydicom"} <= {name for name in PACKAGES if name in found}


def test_the_linear_algebra_is_named_with_the_processor_that_it_computes_for() -> None:
    np.linalg.svd(np.eye(3))
    assert all(len(each.split()) >= 3 for each in _blas())


def test_modules_are_told_apart_by_a_digest() -> None:
    assert len(_source()) == 64
    assert _source() == _source()

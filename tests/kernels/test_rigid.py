"""Motion parameters and matrices."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from rtevo.kernels.rigid import matrix_from_params, params_from_matrix

angles = st.floats(-1.5, 1.5)
lengths = st.floats(-100, 100)
motions = st.tuples(lengths, lengths, lengths, angles, angles, angles)


@settings(deadline=None)
@given(motions, st.tuples(lengths, lengths, lengths))
def test_there_and_back(params, centre):
    np.testing.assert_allclose(params_from_matrix(matrix_from_params(params, centre), centre), params, atol=1e-9)


@settings(deadline=None)
@given(motions, st.tuples(lengths, lengths, lengths))
def test_agrees_with_scipy_and_keeps_its_centre(params, centre):
    matrix = matrix_from_params(params, centre)
    np.testing.assert_allclose(matrix[:3, :3], Rotation.from_euler("xyz", params[3:]).as_matrix(), atol=1e-12)
    np.testing.assert_allclose((matrix @ [*centre, 1])[:3], np.add(centre, params[:3]), atol=1e-9)

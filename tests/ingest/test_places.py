"""How many slices a volume has, from whatever files came in whatever order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rtevo.ingest.places import Places


@settings(max_examples=150, deadline=None)
@given(
    slices=st.integers(4, 40),
    volumes=st.integers(2, 6),
    streams=st.integers(1, 3),
    lost=st.floats(0, 0.4),
    order=st.sampled_from(["ascending", "descending", "odd first", "even first"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_never_a_wrong_number_and_the_right_one_once_a_volume_is_there(
    slices: int, volumes: int, streams: int, lost: float, order: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    at = {
        "ascending": [*range(slices)],
        "descending": [*range(slices)][::-1],
        "odd first": [*range(0, slices, 2), *range(1, slices, 2)],
        "even first": [*range(1, slices, 2), *range(0, slices, 2)],
    }[order]
    files = [((v * slices + k) * streams + 1, 33 * at[k], v) for v in range(volumes) for k in range(slices)]
    whole = [all(rng.random() >= lost for _ in range(slices)) for _ in range(volumes)]
    came = [file for file in files if whole[file[2]] or rng.random() >= lost]
    places = Places()
    places.streams = streams
    for i in rng.permutation(len(came)):
        number, place, volume = came[i]
        if places.add(number, place):
            assert places.slices == slices
            assert places.volume(number) == volume + 1
    if sum(whole) >= 2 and whole[0] and whole[1]:
        assert places.slices == slices

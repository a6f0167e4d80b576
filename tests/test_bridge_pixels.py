"""Images of several kinds of arrays: converted where that is exact, refused in words where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rtevo.bridge import Bridge
from rtevo.bridge.pixels import rgb8
from rtevo.errors import DataError
from rtevo.wire import PresentationSettings

RGB = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (RGB, RGB),
        (RGB[:, ::-1], RGB[:, ::-1]),  # not contiguous
        (np.dstack([RGB, np.full((5, 7), 255, np.uint8)]), RGB),
        (GREY, np.dstack([GREY] * 3)),
        (GREY[:, :, None], np.dstack([GREY] * 3)),
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB.astype(np.int64), RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (RGB.tolist(), RGB),
    ],
)
def test_what_can_be_converted_exactly_is(pixels: Any, expected: Any) -> None:
    found = rgb8(pixels)
    np.testing.assert_array_equal(found, expected)
    assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.dstack([RGB, GREY]), "transparent"),
        (RGB.astype(np.uint16) * 257 + 1, "8 bits a channel"),
        (RGB.astype(np.int32) - 300, "levels of 0 to 255"),
        (RGB / 100.0, "floats of 0 to 1"),
        (RGB / 510, r"steps of 1/255.*astype\('uint8'\)"),
        (np.full((2, 2), np.nan), "floats of 0 to 1"),
        (RGB.astype(np.float64), "floats of 0 to 1"),
        (RGB > 3, "got bool"),
        (RGB[:, :, :2], "of shape"),
        (np.zeros((0, 3, 3), np.uint8), "of shape"),
        ("picture.png", "of shape"),
    ],
)
def test_what_cannot_is_refused_in_words(pixels: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        rgb8(pixels)


def test_a_refused_image_is_not_sent() -> None:
    with Bridge("tcp://127.0.0.1:0", PresentationSettings()) as bridge:
        with pytest.raises(DataError):
            bridge.send_image(0, 0, RGB / 510, verdict="given")
        assert bridge.in_flight == 0
        bridge.send_image(0, 0, GREY, verdict="given")
        assert bridge.in_flight == 1

"""Texts as pictures: what fits, and which characters a font has. Needs Pillow with Raqm, and fonts: DejaVu's are nearly everywhere."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PIL")

from presenter import lettering
from presenter.display import DisplayError
from presenter.lettering import Lettering

ROOM = (700.0, 500.0)
HEBREW, ARABIC, JAPANESE = "שלום עולם", "مرحبا بك", "少々お待ち"


@pytest.fixture(autouse=True)
def dejavu() -> None:
    if "DejaVu Sans" not in lettering._installed(()):
        pytest.skip("no DejaVu fonts here (Debian: fonts-dejavu-core)")


def letters(text: str, font: str = "DejaVu Sans", direction: str = "auto") -> Lettering:
    return Lettering({"wait_text": text}, font, direction)


def test_a_text_is_broken_into_lines_and_fits() -> None:
    text = "The session is about to begin.\n\nPlease look at the middle of the screen and keep still until we come."
    drawn = letters(text).fitted("wait_text", text, 30, ROOM)
    assert drawn.shape[1] <= ROOM[0]
    assert letters(text).lines(text, 30, 650)[:2] == ["The session is about to begin.", ""]
    assert len(letters(text).lines(text, 30, 650)) == 4
    assert drawn.max() == 255
    assert drawn[0].max() == drawn[:, 0].max() == 0  # room around it


@pytest.mark.parametrize(("text", "size"), [("word " * 900, 30), ("x" * 200, 30), ("two\nlines", 300)], ids=["long", "a word", "large"])
def test_a_text_that_does_not_fit_is_refused_with_the_size_that_would(text: str, size: int) -> None:
    made = letters(text)
    with pytest.raises(DisplayError, match=r"wait_text: the text does not fit on the screen: .*make text_height at most 0\.\d\d") as error:
        made.fitted("wait_text", text, size, ROOM)
    factor = float(str(error.value).partition("at most ")[2].partition(" ")[0])
    made.fitted("wait_text", text, int(factor * size), ROOM)


def test_scripts_without_spaces_are_broken_between_signs() -> None:
    text = "東" * 60
    made = Lettering.__new__(Lettering)  # no font with these signs need be here
    made.path, made._raqm, made._direction = letters("a").path, False, "auto"
    assert len(made.lines(text, 30, 400)) > 1


@pytest.mark.parametrize("text", [HEBREW, ARABIC])
def test_right_to_left_texts_run_from_the_right_and_are_joined(text: str) -> None:
    made = letters(text)
    assert made._direction_of(text) == "rtl"
    first = made.picture(text.partition(" ")[0], 40, 1e9)
    whole = made.picture(text, 40, 1e9)
    pad = round(lettering.PADDING * 40)
    end = first[:, pad:-pad]  # the first word stands at the right end
    np.testing.assert_allclose(whole[:, -pad - 20 : -pad].sum(), end[:, -20:].sum(), rtol=0.1)
    isolated = sum(made.picture(c, 40, 1e9).shape[1] - 2 * pad for c in ARABIC if c != " ")
    if text == ARABIC:  # joined letters are narrower than isolated ones
        assert whole.shape[1] - 2 * pad < 0.9 * isolated


def test_direction_can_be_said() -> None:
    assert letters("abc", direction="right-to-left")._direction_of("abc") == "rtl"
    assert letters(HEBREW, direction="left-to-right")._direction_of(HEBREW) == "ltr"
    assert letters("1, 2 " + HEBREW)._direction_of("1, 2 " + HEBREW) == "rtl"


def test_characters_that_a_font_lacks_are_refused_with_one_that_has_them() -> None:
    with pytest.raises(DisplayError, match=r"wait_text: DejaVu Sans Mono lacks ש \(U\+05E9\).*: 'DejaVu Sans' has all characters"):
        letters("ש", "DejaVu Sans Mono")
    private = "\U000f0000"
    for font in ("DejaVu Sans", ""):
        with pytest.raises(DisplayError, match=r"\(U\+F0000\): install a font that has them"):
            letters(f"a{private}", font)


def test_without_a_font_named_the_first_that_has_all_characters_is_taken() -> None:
    assert letters("abc" + HEBREW, "").path.exists()
    assert lettering._missing_of(letters(HEBREW, "").path, "שלום") == ""


def test_fonts_by_family_and_by_file() -> None:
    path = letters("a").path
    assert letters("a", "dejavu sans").path == letters("a", str(path)).path == path
    for font in ("No Such Font", "/nowhere/font.ttf"):
        with pytest.raises(DisplayError, match=r"\[presentation\] font: expected"):
            letters("a", font)


def test_a_mark_is_a_frame_of_the_same_size() -> None:
    plain, marked = (letters("yes").picture("yes", 30, 1e9, marked=mark) for mark in (False, True))
    assert plain.shape == marked.shape
    assert (marked[0] == 255).all()
    inner = slice(4, -4)
    np.testing.assert_array_equal(plain[inner, inner], marked[inner, inner])

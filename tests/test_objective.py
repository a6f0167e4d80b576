"""Objectives over several maps: what can be written, what it says of the maps, and what is refused in which words."""

from __future__ import annotations

import pytest

from rtevo.objective import Goal, parse_objective

MAPS = ("body", "face", "place", "face-object", "2back")


def goal(text: str) -> Goal:
    return parse_objective(text).over(MAPS)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("face", {"face": 1.0}),
        ("-face", {"face": -1.0}),
        ("face - 0.5 * place", {"face": 1.0, "place": -0.5}),
        ("  2*face+.25 * place  ", {"face": 2.0, "place": 0.25}),
        ("face-object - face", {"face-object": 1.0, "face": -1.0}),
        ("2 * 2back", {"2back": 2.0}),
        ("face - mean(body, place)", {"face": 1.0, "body": -0.5, "place": -0.5}),
        ("face - mean(others)", {"face": 1.0, "body": -0.25, "place": -0.25, "face-object": -0.25, "2back": -0.25}),
        ("face + face", {"face": 2.0}),
    ],
)
def test_a_weighted_sum_of_maps(text: str, weights: dict[str, float]) -> None:
    found = goal(text)
    assert dict(zip(found.maps, found.linear, strict=True)) == weights
    assert found.is_linear


def test_a_map_is_kept_near_its_mean_and_ranks_need_no_units() -> None:
    found = goal("face - 0.5 * keep(place) + rank(body)")
    assert found == Goal("face - 0.5 * keep(place) + rank(body)", ("face", "place", "body"), (1, 0, 0), (0, -0.5, 0), (0, 0, 1))
    assert not found.is_linear
    assert found.added == ("face", "place")
    assert goal("rank(face) - rank(place)").added == ()
    assert goal("face").added == ()


def test_maps_of_one_of_several_folders_have_two_names() -> None:
    found = parse_objective("monday/face - tuesday/face + place").over(["monday/face", "tuesday/face", "place"], {"monday/place": "place"})
    assert found.maps == ("monday/face", "tuesday/face", "place")
    assert parse_objective("monday/place").over(["place"], {"monday/place": "place"}).maps == ("place",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected an objective, as 'face'"),
        ("face place", "expected '\\+' or '-', found 'place'; write it as 'face'"),
        ("face -", "expected a map's name, mean.* found its end"),
        ("face-0.5*place", "expected '\\+' or '-', found '\\*place'.* minus between blanks"),
        ("0.5 * (face - place)", "expected a map's name"),
        ("keep(place, face)", "expected one map's name"),
        ("face + keep(place)", "expected keep.place. to be subtracted"),
        ("mean(face, face)", "expected each map once"),
        ("face; import os", "found '; import os'"),
        ("__import__('os')", "expected '\\+' or '-'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_place(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_objective(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fase - place", "unknown map 'fase': expected one of body, face, place, face-object, 2back; did you mean 'face'"),
        ("face-place", "unknown map 'face-place'.* did you mean 'face - place'"),
        ("face - face", "expected a map to maximise, found none"),
        ("body + face + place + face-object + 2back - mean(others)", "expected maps that are not named otherwise, found none"),
    ],
)
def test_maps_that_are_not_there_are_refused_with_those_that_are(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        goal(text)

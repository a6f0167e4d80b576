"""The page about a run follows from its folder: complete, self-contained, and silent about a blinded session that goes on."""

from __future__ import annotations

import base64
import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo import records
from rtevo.config import build, dump
from rtevo.evolve import RandomEvolver
from rtevo.record import LOG, ImageRecord, LatentRecord, LogWriter, RecordedSession, Recorder, read_log
from rtevo.records import EventKind, VolumeFlag
from rtevo.report import gather, page, pages
from rtevo.report.__main__ import main
from rtevo.report.gather import Learnt, means
from rtevo.report.methods import REFERENCES, methods
from rtevo.report.tables import decoder_today, late, rings, steps, warnings

SHAPE, SECOND_NS, MS = (4, 3, 2), 1_000_000_000, 1_000_000
READER: dict[str, Any] = {
    "name": "decode", "messages": 4, "overhead_p50_ns": 20_000, "overhead_p99_ns": 31_000, "waits": 2,
    "wake_up_ns": 300_000, "wake_up_max_ns": 200_000, "overruns": 0,
}  # fmt: skip
RING: dict[str, Any] = {
    "published": 4, "slot_bytes": 896_032, "overhead_p50_ns": 10_000, "overhead_p99_ns": 1_200_000, "waits": 1,
    "readers": [
        READER,
        READER | {"name": "record", "overhead_p50_ns": 8_000, "waits": 0, "wake_up_ns": 0, "wake_up_max_ns": 0, "overruns": 3},
    ],
}  # fmt: skip
Record = Callable[..., Path]


def slot(dtype: np.dtype[np.void], **fields: object) -> np.void:
    record = np.zeros((), dtype)
    for name, value in fields.items():
        record[name] = value
    return record[()]


def put_trial(recorder: Recorder, generation: int, candidate: int, onset_s: float | None, probe: int, score: float, maps: int = 0) -> None:
    """One image, from being asked for to its score."""
    key = {"generation": generation, "candidate": candidate}
    asked_ns = (5 + 10 * generation) * SECOND_NS
    latent = {"probe": probe, "scored_ns": generation * SECOND_NS, "evolved_ns": asked_ns}
    recorder.take("latents", slot(records.latent_dtype(3, 2), **key, **latent))
    painted = {"evolved_ns": asked_ns, "painted_ns": asked_ns + (candidate + 1) * 1500 * MS}
    recorder.take("images", slot(records.image_dtype(8, 8, 2), **key, **painted, pixels=np.full((8, 8, 3), 60 * candidate + generation)))
    if onset_s is None:
        return
    for kind, t_s in ((EventKind.ONSET, onset_s), (EventKind.OFFSET, onset_s + 3)):
        event = {"kind": kind, "t_ns": int((10 + t_s) * SECOND_NS), "error_ns": 200_000, "value": 1}
        recorder.take("events", slot(records.event_dtype(), **key, **event))
    done = {"closed_ns": 50 * SECOND_NS, "scored_ns": 50 * SECOND_NS + 40 * MS, "volumes_used": 9}
    own = {"maps": [[score + 1 + k, 0.25] for k in range(maps)]} if maps else {}
    recorder.take("scores", slot(records.score_dtype(maps), **key, **done, score=score, score_se=0.5, reliability=0.8, **own))
    if probe < 0:
        recorder.take("fitness", slot(records.fitness_dtype(), **key, fitness=score, fitness_se=0.5))


@pytest.fixture
def recorded(tmp_path: Path) -> Record:
    """Return a function that writes a session: ten volumes (one lost, one a spike), two generations of three images, two probes."""

    def write(name: str = "out", ended: bool = True, condition: str = "brain", end: dict[str, Any] | None = None, **tables: Any) -> Path:
        out, maps = tmp_path / name, tables.pop("maps", ())
        out.mkdir()
        session = {**tables.pop("session", {}), "condition": condition}
        if condition == "blinded":
            (tmp_path / "key.tsv").touch()
            tables["evolution"] = {**tables.get("evolution", {}), "blinding_key": str(tmp_path / "key.tsv")}
        (out / "session.toml").write_text(dump(build({"session": session, **tables})), encoding="utf-8")
        start = {"rtevo": "1.2", "tr_s": 2.0, "shape": list(SHAPE), "affine": np.diag([3.0, 3, 3.5, 1]).tolist(), "source": "simulate"}
        with LogWriter(out / "record.jsonl") as log:
            log.append("start", {**start, "condition": condition, "seed": 7, "speed": 1.0})
        recorder = Recorder(out, maps=maps)
        recorder.take("events", slot(records.event_dtype(), kind=EventKind.NOTE, text=b"presenter ready: psychopy, 60.000 Hz"))
        recorder.take("events", slot(records.event_dtype(), kind=EventKind.TRIGGER, t_ns=10 * SECOND_NS))
        for index in range(10):
            flags = {3: VolumeFlag.MISSING, 6: VolumeFlag.SPIKE}.get(index, VolumeFlag.OK)
            times = {"closed_ns": index * SECOND_NS, "ingested_ns": index * SECOND_NS + 5 * MS}
            times["aligned_ns"] = times["ingested_ns"] + (2500 if index == 9 else 30) * MS
            motion = [np.nan] * 6 if flags & VolumeFlag.MISSING else [0.1 * index] * 6
            found = {"framewise_displacement_mm": 0.2, "dvars_percent": 2.0, "tsnr": 50.0}
            recorder.take("aligned", slot(records.aligned_dtype(), index=index, flags=int(flags), motion=motion, **times, **found))
        for generation in range(2):
            for candidate in range(3):
                onset = None if (generation, candidate) == (1, 2) else 6.0 + 16 * generation + 4 * candidate
                put_trial(recorder, generation, candidate, onset, -1, 1.25 + generation + 0.5 * candidate, len(maps))
            held = {"kind": EventKind.FIXATION, "generation": -1, "candidate": -1, "t_ns": int((26 + 16 * generation) * SECOND_NS)}
            recorder.take("events", slot(records.event_dtype(), **held))
        put_trial(recorder, 0, 9, 40.0, 0, 0.75, len(maps))
        if ended:
            told = [f"image {k} came 0.5 s late" for k in range(3)]
            recorder.log.append(
                "end", {"status": "completed", "condition": "sham", "rings": {"volumes": RING}, "warnings": told, **(end or {})}
            )
        recorder.log.close()
        return out

    return write


def test_exposure_tells_everything_that_was_on_the_screen_and_all_that_was_not(
    recorded: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recorded(ended=False)
    recorder = Recorder(out)
    findings = [
        {"name": "spiders", "version": "1.0", "refused": True, "value": 0.9, "threshold": 0.5, "reason": "looks <b>like</b> one", "ms": 3}
    ]
    key = {"generation": 1, "candidate": 2}
    for attempt in range(2):
        judged = {"attempt": attempt, "refused": 1, "verdict": json.dumps(findings).encode()}
        recorder.take("refused", slot(records.image_dtype(8, 8, 2), **key, **judged, pixels=np.full((8, 8, 3), 99)))
    taken = {"kind": EventKind.TAKEN, "generation": 1, "candidate": 1, "t_ns": 30 * SECOND_NS, "text": b"participant"}
    recorder.take("events", slot(records.event_dtype(), **taken))
    recorder.take("events", slot(records.event_dtype(), kind=EventKind.STOP_ASKED, generation=-1, candidate=-1, t_ns=31 * SECOND_NS))
    recorder.log.append("end", {"status": "stopped", "rings": {}, "warnings": []})
    recorder.log.close()
    assert main([str(out), "--exposure"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "exposure.html")
    text = (out / "exposure.html").read_text()
    page = Page(text)
    assert all(source.startswith("data:") for source in page.sources)
    assert "looks &lt;b&gt;like&lt;/b&gt; one" in text
    assert "pictures that were refused and kept from the screen 2" in page.words
    assert "taken away: participant" in page.words
    with (out / "exposure.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found = Counter(row["what"] for row in rows)
    assert found == {"shown": 5, "taken away": 1, "refused": 2, "not shown": 1}
    assert {row["by"] for row in rows if row["what"] == "refused"} == {"spiders"}
    assert {row["why"] for row in rows if row["what"] == "shown"} == {"n/a"}
    said = dict(methods(gather(out))[0])["Safety"]
    assert "participant or stimulus PC: 1; their scores were not used" in said


class Page(HTMLParser):
    """Everything that a browser would load, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def test_a_folder_without_a_session_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "expected the folder of a session" in capsys.readouterr().err


def test_a_session_that_ended_before_its_first_volume_has_no_page_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LogWriter(tmp_path / LOG) as log:
        log.append("start", {"schema": 1, "tr_s": 2.0})
    assert main([str(tmp_path)]) == 2
    assert "expected at least one volume, found none: there is nothing to report" in capsys.readouterr().err


def test_the_page_is_complete_and_asks_for_nothing_from_outside(recorded: Record) -> None:
    found = Page(page(gather(recorded(end={"condition": "brain"}))))
    assert all(source.startswith(("data:", "#")) for source in found.sources)
    assert sum(source.startswith("data:image/png") for source in found.sources) == 7  # three images of two generations, and a probe
    plots = [base64.b64decode(s.partition(",")[2]) for s in found.sources if s.startswith("data:image/svg+xml")]
    assert len(plots) == 5
    assert not any(re.search(rb'(href|src)="(?!#)', plot) or b"url(http" in plot for plot in plots)
    for text in (
        "+1.25 ± 0.50",
        "not shown",
        "Probes",
        "presenter psychopy, 60.000 Hz",
        "volumes that never arrived 1: 3",
        "(3 like this)",
    ):
        assert text in found.words
    for title in ("Acquisition.", "Realignment and quality.", "Response estimates.", "Images.", "Evolution.", "Presentation and timing."):
        assert title in found.words


def test_errors_of_the_mean(recorded: Record) -> None:
    session = gather(recorded())
    generations, mean, se = means(session.evolved, "fitness", session.generations)
    assert generations == [0, 1]
    np.testing.assert_allclose(mean, [1.75, 2.5])  # the last image was never shown
    np.testing.assert_allclose(se, [0.5 / np.sqrt(3), 0.5 / 2])


def test_latencies_against_their_deadlines(recorded: Record) -> None:
    rows = {row[0]: row[1:] for row in steps(gather(recorded()))}
    assert rows["file closed -> volume read"] == ["9", "5.0", "5.0", "5.0", "2,000", "0"]
    assert rows["volume read -> realigned"][3:] == ["2,500.0", "2,000", "1"]
    assert rows["last needed file -> score"][:2] == ["6", "40.0"]
    # the second and third of those asked for together have a cadence (4 s) more each
    assert rows["image requested -> painted"] == ["3", "0.0", "1,470.0", "1,500.0", "4,000", "0"]


def test_gaps_and_late_images(recorded: Record) -> None:
    session = gather(recorded())
    found = dict(late(session))
    assert found["volumes that never arrived"] == "1: 3"
    assert found["volumes after a jump of the head"] == "1: 6"
    assert found["times that fixation was held because no image was ready"] == "2: at 16.0, 32.0 s"
    assert found["images that were never shown"] == "1"
    assert found["frames that the screen dropped"] == "6"
    assert warnings(session) == ["image 0 came 0.5 s late (3 like this)"]


def test_the_end_is_not_waiting_for_an_image(recorded: Record) -> None:
    out = recorded(ended=False)
    with LogWriter(out / "record.jsonl") as log:
        log.append("events", {"kind": int(EventKind.FIXATION), "generation": -1, "candidate": -1, "t_ns": 60 * SECOND_NS})
    assert gather(out).held_s == [16.0, 32.0]


def test_methods_have_the_actual_settings_and_their_references(recorded: Record) -> None:
    out = recorded(
        end={"condition": "brain"},
        decoder={"method": "deconvolve", "hrf": "fir", "motion_terms": 24, "fwhm_mm": 5.5},
        evolution={"strategy": "truncation", "mutation_sd": 0.7, "schedule": "generational"},
        generator={"guidance_scale": 1.0, "steps": 17},
        presentation={"image_s": 2.5, "washout_s": 1.5},
    )
    paragraphs, references = methods(gather(out))
    text = " ".join(f"{title} {words}" for title, words in paragraphs)
    for part in (
        "every 2 s",
        "finite impulse response",
        "24 motion regressors",
        "5.5 mm full width",
        "standard deviation 0.7",
        "no guidance",
    ):
        assert part in text
    for part in ("17 denoising steps", "shown for 2.5 s", "1.5 s of fixation", "Seed 7", "4 × 3 × 2 voxels of 3 × 3 × 3.5 mm", "PsychoPy"):
        assert part in text
    cited = [int(n) for group in re.findall(r"\[([\d, ]+)\]", text) for n in group.split(",")]
    assert sorted(set(cited)) == list(range(1, len(references) + 1))
    assert list(dict.fromkeys(cited)) == sorted(set(cited))  # numbered in the order in which they are cited
    assert REFERENCES["glover1999"] in references
    assert REFERENCES["thompson1933"] not in references


def test_methods_name_the_nuisance_terms_and_how_probable_each_was(recorded: Record, tmp_path: Path) -> None:
    mask = tmp_path / "csf.nii.gz"
    mask.touch()
    out = recorded(end={"condition": "brain"}, decoder={"nuisance": ["csf", "acompcor"], "csf_mask": str(mask)})
    with LogWriter(out / "record.jsonl") as log:
        log.append("scores", {"generation": 0, "candidate": 0, "revision": 1, "score": 1.0, "nuisance": [0.97, math.nan]})
    paragraphs, references = methods(gather(out))
    words = dict(paragraphs)["Response estimates"]
    assert "the mean of cerebrospinal fluid (probability 0.97 at the end), five principal components" in words
    assert "(not judged)" in words
    assert "fluid given as a mask; scaled on the first 40 s" in words
    assert {REFERENCES["behzadi2007"], REFERENCES["dickey1971"]} <= set(references)


@pytest.mark.parametrize("strategy", ["surrogate", "truncation", "cma", "sepcma", "random"])
@pytest.mark.parametrize("condition", ["brain", "sham", "random", "ratings"])
def test_every_condition_and_strategy_has_its_words(recorded: Record, strategy: str, condition: str) -> None:
    out = recorded(end={"condition": condition}, evolution={"strategy": strategy}, decoder={"method": "peak"})
    paragraphs, _ = methods(gather(out))
    assert all(len(words) > 40 for _, words in paragraphs)


@pytest.mark.parametrize(("strategy", "pooled"), [("surrogate", True), ("truncation", False)])
def test_the_methods_say_that_evolution_went_on_from_an_earlier_run(recorded: Record, tmp_path: Path, strategy: str, pooled: bool) -> None:
    evolution = {"strategy": strategy, "continue_from": str(tmp_path), "probe_every": 0}
    words, references = methods(gather(recorded(end={"condition": "brain"}, evolution=evolution)))
    text = dict(words)["Evolution"]
    assert "continued from an earlier run." in text
    assert "an absolute gain over the earlier run is not identified" in text
    assert ("an offset, a unit, a noise level and a slow drift of their own" in text) == pooled
    assert (REFERENCES["patterson1971"] in references) == pooled


def test_a_blinded_session_stays_blinded_until_its_end(recorded: Record) -> None:
    out = recorded(ended=False, condition="blinded")
    session = gather(out)
    assert session.condition == "blinded"
    assert all(trial[name] is None for trial in session.trials for name in ("score", "score_se", "fitness"))
    found = Page(page(session))
    assert "has not ended: its condition, scores and fitness are left out" in found.words
    assert "±" not in found.words
    with LogWriter(out / "record.jsonl") as log:
        log.append("end", {"status": "completed", "condition": "sham"})
    session = gather(out)
    assert session.condition == "sham"
    assert "permuted among the images" in Page(page(session)).words


def evolved(out: Path, noise: float) -> Path:
    """Leave the state of evolution and the built-in space, as a run of six images with a clear preference or none does."""
    from rtevo.generate import TINY_LATENT_SPACE
    from rtevo.latent import LatentSpace

    LatentSpace.load(TINY_LATENT_SPACE).first(3).save(out / "latent_space.npz")
    rng = np.random.default_rng(0)
    evolver = RandomEvolver(3, rng)
    evolver.begin()
    latents = evolver.ask(60)
    evolver.tell(np.arange(60), (latents[:, 0] if noise < 1 else 0) + noise * rng.standard_normal(60))
    (out / "evolution.json").write_text(json.dumps({"evolver": evolver.to_state()}), encoding="utf-8")
    return out


def test_the_page_names_what_is_preferred_where_it_is_known_and_may_be_told(recorded: Record) -> None:
    known = gather(evolved(recorded(end={"condition": "brain"}), 0.3))
    words = Page(page(known)).words
    assert "Known: the odds for a preference against none are" in words
    assert "Responses rise towards" in words
    assert "of its kind" in words
    assert "Sham" not in words
    assert len(pages(known)) == 4
    nothing = gather(evolved(recorded("none"), 1.0))  # that ended as sham
    words = Page(page(nothing)).words
    assert "Not known: the odds for a preference against none are" in words
    assert "It came about by chance" in words
    assert "Responses rise towards" not in words
    assert len(pages(nothing)) == 3
    hidden = gather(evolved(recorded("hidden", ended=False, condition="blinded"), 0.3))
    words = Page(page(hidden)).words
    assert hidden.preferred is None
    assert "the odds for a preference" not in words
    assert "Hidden: the session is blinded." in words
    assert len(pages(hidden)) == 3
    (known.out / "evolution.json").write_text("{}")
    assert "Not known: the evolution's final state cannot be read" in Page(page(gather(known.out))).words
    assert "this run has no evolution.json" in Page(page(gather(recorded("older")))).words


def test_a_session_that_was_cut_short_has_a_page_too(recorded: Record) -> None:
    out = recorded(ended=False)
    words = Page(page(gather(out))).words
    assert "brain, unfinished" in words
    assert "not recorded: the session did not end" in words
    assert len(pages(gather(out))) == 3
    empty = out.parent / "empty"
    empty.mkdir()
    with LogWriter(empty / "record.jsonl") as log:
        log.add(read_log(out / "record.jsonl")[0])
    assert "0 lost" in Page(page(gather(empty))).words
    assert pages(gather(empty))


def test_a_session_that_was_resumed(recorded: Record) -> None:
    out = recorded(ended=False)
    before = {latency.name: len(latency.ms) for latency in gather(out).latencies}
    log = RecordedSession(out)
    asked, painted = log.records(LatentRecord)[0], log.records(ImageRecord)[0]
    with LogWriter(out / "record.jsonl") as file:
        file.add(replace(asked, generation=2, candidate=0, evolved_ns=1, scored_ns=1))
        file.add(replace(log.start, part=1, first_volume=10))  # the computer's clock may have begun anew
        file.add(replace(painted, generation=2, candidate=0, painted_ns=77 * SECOND_NS))
        file.append("end", {"status": "completed", "condition": "brain"})
    session = gather(out)
    assert {latency.name: len(latency.ms) for latency in session.latencies} == before
    words = Page(page(session)).words
    assert "Dotted: the session was interrupted and resumed." in words
    assert "part 1" in words
    assert pages(session)


def test_controls_are_drawn_beside_it(recorded: Record) -> None:
    session, control = gather(recorded(end={"condition": "brain"})), gather(recorded("other"))
    texts = [text.get_text() for ax in pages(session, [control])[0].axes if ax.get_legend() for text in ax.get_legend().get_texts()]
    assert "control: sham, other" in texts
    assert "probe 0" in texts


def test_pages_are_written_as_asked(recorded: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = recorded()
    assert main([str(out), "--to", str(tmp_path / "a.pdf"), "--to", str(tmp_path / "a.png"), "--to", str(tmp_path / "a.html")]) == 0
    printed = capsys.readouterr().out.split()
    assert [Path(line).name for line in printed] == ["a.pdf", "a.png", "a-2.png", "a-3.png", "a.html"]
    assert all(Path(line).stat().st_size > 1000 for line in printed)
    assert main([str(out), "--to", str(tmp_path / "a.doc")]) == 2
    assert "doc" in capsys.readouterr().err


def test_the_same_session_gives_the_same_page(recorded: Record) -> None:
    out = recorded()
    assert page(gather(out)) == page(gather(out))


def test_the_cost_of_handing_messages_over_is_listed_by_ring() -> None:
    unused = {**RING, "published": 0, "readers": [{**reader, "messages": 0} for reader in RING["readers"]]}
    rows = rings({"volumes": RING, "events": unused})
    assert rows[0] == ["volumes", "4", "896", "10 / 1,200", "20 / 31 (decode)", "150 (2 waits)", "200 (decode)", "1", "3"]
    assert rows[1] == ["events", "0", "896", "–", "–", "–", "–", "1", "3"]


def test_sessions_that_did_not_count_the_cost_have_a_page_too(recorded: Record) -> None:
    """As sessions were recorded before rings counted their own time."""
    old = {key: value for key, value in READER.items() if not key.startswith("overhead") and key != "messages"} | {"consumed": 4}
    ring = {"published": 4, "slot_bytes": 896_032, "waits": 1, "readers": [old]}
    assert rings({"volumes": ring})[0][3:5] == ["not recorded", "not recorded (decode)"]
    out = recorded(end={"rings": {"volumes": ring}})
    assert "not recorded (decode)" in Page(page(gather(out))).words
    assert pages(gather(out))


def test_what_was_learnt_of_the_response_is_drawn_beside_what_was_expected(recorded: Record) -> None:
    out = recorded()
    session = gather(out)
    assert session.learnt is None  # as sessions were recorded before
    whole = Page(page(session)).words
    values = np.array([[0.5, 1.5, 1.0, 0.3], [1.2, 0.4, 1.1, 0.2]])
    learnt = Learnt((0.5, 1.8, 1.0, 0.3), np.array([5.0, 40.0]), values, False)
    said = "What the decoder knew of this participant's response"
    assert said not in whole
    assert said in Page(page(replace(session, learnt=learnt))).words


def test_a_sentence_says_how_good_the_decoder_was(recorded: Record) -> None:
    session = gather(recorded())
    said = decoder_today(session)
    model = "by its own model its scores share 80% of their variance with the responses"
    assert said == f"Today the decoder separated images well: {model} (reliability 0.80)."
    assert said in Page(page(session)).words
    probes = [{"probe": p, "onset": 10.0 * k, "score": p + 0.1 * (-1) ** (k + p)} for p in range(3) for k in range(4)]
    again = replace(session, trials=probes)
    assert "reliability 0.80; split-half reliability of repeated images: 0." in decoder_today(again)
    assert decoder_today(replace(session, blinded=True)) == ""


def test_the_maps_of_an_objective_have_their_figures_and_their_scores_beside_each_image(recorded: Record, tmp_path: Path) -> None:
    decoder = {"folder": str(tmp_path), "objective": "face - 0.5 * place"}
    text = page(gather(recorded(end={"condition": "brain"}, maps=("face", "place"), decoder=decoder)))
    words = Page(text).words
    assert "Map face, the same +0.75 ± " in words
    assert "from +2.75 to +3.50" in words
    assert "; face +2.25; place +3.25" in text
    assert "projection of each volume on the sum of weight maps ‘face - 0.5 * place’" in words
    hidden = page(gather(recorded("blind", ended=False, condition="blinded", maps=("face", "place"), decoder=decoder)))
    assert "Map face" not in hidden
    assert "place +3.25" not in hidden

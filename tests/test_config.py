"""Session files: defaults, overrides, and every mistake in one message."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomllib

from rtevo.config import Config, absolute, build, choices, dump, example, load, recorded
from rtevo.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[1]


def write(folder: Path, text: str) -> Path:
    path = folder / "session.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_no_file_is_the_default_session() -> None:
    assert load(None) == Config()


def test_the_example_is_the_default_session_and_is_what_the_repository_holds(tmp_path: Path) -> None:
    assert load(write(tmp_path, example())) == Config()
    assert (REPOSITORY / "session.example.toml").read_text(encoding="utf-8") == example()


def test_dump_reads_back_equal(tmp_path: Path) -> None:
    config = build({"session": {"seed": 7, "speed": 2}, "presentation": {"rating_keys": ["a", "b"], "wait_text": 'say "é"\n'}})
    assert load(write(tmp_path, dump(config))) == config


USER = """# our study
[evolution]
population = 3  # so few for the pilot
resume = "" # by its old name

# the scanner of building 7
[acquisition]
peers = ["@10.0.0.5"]
"""


def test_comments_of_the_users_file_survive_where_it_is_written_anew(tmp_path: Path) -> None:
    config = load(write(tmp_path, USER), {("evolution", "population"): 4, ("session", "seed"): 7})
    text = dump(config, USER)
    assert load(write(tmp_path, text)) == config
    for line in ("# our study", "population = 4  # so few for the pilot", "# the scanner of building 7", 'peers = ["@10.0.0.5"]'):
        assert line in text
    assert "resume" not in text


@pytest.mark.parametrize(
    "like", ["session.seed = 3\n", "session = {seed = 3}\n", "not toml", "session = 5\n", "[session]\nseed = 3\n[session.more]\nx = 1\n"]
)
def test_a_file_that_is_written_in_an_unusual_way_loses_at_most_its_comments(like: str, tmp_path: Path) -> None:
    config = build({"session": {"seed": 7}})
    assert load(write(tmp_path, dump(config, like))) == config


def test_keys_that_have_moved_to_another_section_are_read_where_they_were(tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", np.ones((1, 3)))
    (tmp_path / "old.toml").write_text('[evolution]  # mine\navoid = "far.npy"  # that\navoid_distance = 0.5\npopulation = 4\n')
    config = load(tmp_path / "old.toml")
    assert (config.safety.avoid, config.safety.avoid_distance, config.evolution.population) == (str(tmp_path / "far.npy"), 0.5, 4)
    written = dump(config, (tmp_path / "old.toml").read_text())
    assert "[evolution]  # mine" in written
    assert build(tomllib.loads(written)) == config
    assert recorded({"evolution": {"avoid": "x.npy"}}, "log")["safety"] == {"avoid": "x.npy"}
    with pytest.raises(ConfigError, match=r"\[safety\] avoid_distance: expected > 0 and < 2, got 3"):
        build({"evolution": {"avoid_distance": 3.0}})


def test_who_approves_pictures_needs_the_page_and_keys_mean_one_thing() -> None:
    with pytest.raises(ConfigError, match=r"\[safety\] approval: 'veto' needs the operator's page"):
        build({"safety": {"approval": "veto"}})
    assert build({"safety": {"approval": "each"}, "console": {"port": 8080}}).safety.approval == "each"
    with pytest.raises(ConfigError, match=r"\[safety\] participant_key: expected a key without another meaning"):
        build({"safety": {"participant_key": "5"}})
    with pytest.raises(ConfigError, match=r"\[safety\] stop_key: expected the name of a key, got 'stopp'"):
        build({"safety": {"stop_key": "stopp"}})


def test_a_key_that_was_renamed_is_read_by_its_old_name(tmp_path: Path) -> None:
    (tmp_path / "evolution.json").touch()
    assert load(write(tmp_path, '[evolution]\nresume = "evolution.json"\n')).evolution.continue_from == str(tmp_path / "evolution.json")


def test_whole_numbers_are_accepted_for_numbers_but_not_the_reverse() -> None:
    assert build({"presentation": {"image_s": 2}}).presentation.image_s == 2.0
    with pytest.raises(ConfigError, match=r"\[session\] seed: expected a whole number, got 1.5"):
        build({"session": {"seed": 1.5}})
    with pytest.raises(ConfigError, match="expected a whole number, got True"):
        build({"session": {"seed": True}})


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    path = write(
        tmp_path, '[session]\ncondition = "brian"\nsed = 1\n[aquisition]\n[acquisition]\ntr_s = -1.0\n[generator]\nsteps = "ten"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.mistakes == [
        "session.toml [aquisition]: unknown section; did you mean acquisition?",
        "session.toml [session] condition: expected one of brain, ratings, physiology, sham, yoked, random, blinded, got 'brian'",
        "session.toml [session] sed: unknown key; did you mean seed?",
        "session.toml [acquisition] tr_s: expected >= 0, got -1.0",
        "session.toml [generator] steps: expected a whole number, got 'ten'",
    ]


def test_a_text_that_the_presenter_would_not_take_between_two_runs_is_found_before_the_first() -> None:
    with pytest.raises(ConfigError) as caught:
        build({"presentation": {"between_text": "x" * 4001, "text_height": 2.0}})
    assert [m.partition(", got")[0] for m in caught.value.mistakes] == [
        "options [presentation] text_height: expected 0.01 to 0.5 of the screen's height",
        "options [presentation] between_text: expected at most 4000 bytes",
    ]


def test_a_real_session_needs_what_only_the_lab_knows() -> None:
    with pytest.raises(ConfigError) as caught:
        build({"acquisition": {"source": "watch"}, "session": {"speed": 2}})
    assert [m.split(":")[0] for m in caught.value.mistakes] == [
        "options [acquisition] folder",
        "options [acquisition] tr_s",
        "options [decoder] folder",
        "options [session] speed",
    ]


def test_a_missing_model_folder_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unclip_model_path: expected an existing folder, got '/nowhere'"):
        build({"generator": {"unclip_model_path": "/nowhere"}})


def test_paths_are_relative_to_the_file_and_options_to_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = write(tmp_path, '[acquisition]\nsource = "replay"\nfolder = "run"\n')
    assert Path(load(path).acquisition.folder) == tmp_path / "run"
    other = tmp_path / "other"
    other.mkdir()
    config = load(path, {("acquisition", "folder"): str(other), ("session", "seed"): 3})
    assert (Path(config.acquisition.folder), config.session.seed) == (other, 3)


@pytest.mark.parametrize("text", ["[session\n", "session = 1\n", "[session]\nspeed = nan\n"])
def test_nonsense_is_an_error_with_the_file_in_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"session\.toml"):
        load(write(tmp_path, text))


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        load(Path("none.toml"))


def test_the_trigger_is_no_rating_key() -> None:
    config = Config()
    assert replace(config.presentation).trigger_key not in config.presentation.rating_keys
    with pytest.raises(ConfigError, match="trigger_key"):
        build({"presentation": {"trigger_key": "1"}})


def test_what_does_not_go_together_in_evolution_is_named(tmp_path: Path) -> None:
    wrong = {"strategy": "cma", "population": 1, "stop_gain": 0.1, "norm_limits": [2, 1]}
    with pytest.raises(ConfigError) as caught:
        build({"session": {"condition": "yoked"}, "evolution": wrong})
    assert [m.split(": ")[0] for m in caught.value.mistakes] == [
        "options [evolution] norm_limits",
        "options [evolution] yoked_to",
        "options [evolution] stop_gain",
        "options [evolution] strategy",
    ]
    with pytest.raises(ConfigError, match=r"norm_limits: expected a list of numbers, got \['a', 2\]"):
        build({"evolution": {"norm_limits": ["a", 2]}})
    assert build({"evolution": {"norm_limits": [0.5, 1]}}).evolution.norm_limits == (0.5, 1.0)
    with pytest.raises(ConfigError, match="continue_from: expected an existing file or folder, got '/nowhere'"):
        build({"evolution": {"continue_from": "/nowhere"}})


def test_who_may_send_from_the_network_has_to_be_said() -> None:
    def told(**acquisition: object) -> str:
        with pytest.raises(ConfigError) as caught:
            build({"acquisition": {"source": "watch", "tr_s": 1.0, **acquisition}, "decoder": {"folder": "."}})
        return "; ".join(caught.value.mistakes)

    assert "peers: expected at least one for address '0.0.0.0', got none" in told(delivery="dicom", address="0.0.0.0")
    assert "keys: expected a folder of keys for delivery 'push' at address '0.0.0.0', got none" in told(
        delivery="push", address="0.0.0.0", peers=["@10.0.0.1"]
    )
    assert "peers: expected @ADDRESS for delivery 'push', got 'CONSOLE'" in told(delivery="push", peers=["CONSOLE"])
    assert "peers: expected a list of TITLE, TITLE@ADDRESS or @ADDRESS" in told(delivery="dicom", peers=["@"])
    assert "peers: expected a list of TITLE" in told(delivery="dicom", peers=["A@somewhere"])
    assert "address: expected an IP address, got 'localhost'" in told(delivery="dicom", address="localhost")
    assert "port: expected 1 to 65535, got 0" in told(delivery="dicom", port=0)
    assert "ae_title: expected 1 to 16 characters" in told(delivery="dicom", ae_title="A TITLE THAT IS TOO LONG")
    fine = {"source": "watch", "tr_s": 1.0, "delivery": "dicom", "address": "0.0.0.0", "peers": ["CONSOLE@192.168.2.1", "@::1", "PACS"]}
    assert build({"acquisition": fine, "decoder": {"folder": "."}}).acquisition.peers[0] == "CONSOLE@192.168.2.1"
    with pytest.raises(ConfigError, match=r"delivery: expected folder or dicom for source 'replay', got 'push'"):
        build({"acquisition": {"source": "replay", "folder": ".", "delivery": "push"}})


@pytest.mark.parametrize(
    ("label", "suggestion"),
    [("Jürgen", "Juergen"), ("Ångström", "Aangstroem"), ("sub-01", "01"), ("a b", "ab"), ("Zoë", "Zoe"), ("٣", ""), ("太郎", ""), ("", "")],
)
def test_labels_are_ascii_letters_and_digits(label: str, suggestion: str) -> None:
    for key in ("participant", "session"):
        with pytest.raises(ConfigError) as found:
            build({"session": {key: label}})
        assert f"[session] {key}: expected letters a to z and digits, got {label!r}" in str(found.value)
        assert (f"did you mean {suggestion!r}?" in str(found.value)) == bool(suggestion)


def test_what_does_not_go_with_a_strategy_that_looks_at_volumes_is_named() -> None:
    decoder = {
        "method": "peak",
        "hrf": "fir",
        "drift": "cosine",
        "motion_terms": 24,
        "objective": "face - keep(place)",
        "nuisance": ["csf"],
    }
    with pytest.raises(ConfigError) as caught:
        build(
            {
                "session": {"condition": "ratings"},
                "decoder": decoder,
                "evolution": {"strategy": "direct", "schedule": "generational", "generations": 61, "population": 10},
            }
        )
    found = [m.removeprefix("options ").split(": ")[0] for m in caught.value.mistakes if "'direct'" in m]
    assert found == [
        "[evolution] strategy",
        *(f"[decoder] {key}" for key in ("method", "hrf", "drift", "motion_terms")),
        "[evolution] schedule",
        "[decoder] nuisance",
        "[decoder] objective",
        "[evolution] generations, population",
    ]
    assert build({"evolution": {"strategy": "direct", "stop_gain": 0.1}}).evolution.stop_gain == 0.1


def test_a_keys_choices_are_what_there_is_to_choose_from() -> None:
    from rtevo.decode import METHODS
    from rtevo.evolve import SCHEDULES, STRATEGIES
    from rtevo.generate.base import BACKENDS, SCHEDULERS
    from rtevo.session.blinding import CONDITIONS

    assert set(choices("evolution", "strategy")) == set(STRATEGIES)
    assert choices("evolution", "schedule") == SCHEDULES
    assert choices("decoder", "method") == METHODS
    assert choices("generator", "backend") == BACKENDS
    assert choices("generator", "scheduler") == SCHEDULERS
    assert set(CONDITIONS) < set(choices("session", "condition"))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('objective = "face -"', "[decoder] objective: 'face -': expected a map's name"),
        ('objective = "face - place"', "[decoder] folder: expected the folder of the objective's maps, got none"),
        ('folder = "maps"\nname = "face"\nobjective = "face"', "[decoder] name: expected none with an objective"),
        ('folder = "maps"\nmore_folders = ["maps"]', "[decoder] objective: expected one that names maps of more_folders, got none"),
        ('folder = "maps"\nmore_folders = ["nowhere"]\nobjective = "face"', "[decoder] more_folders: expected an existing folder, got"),
    ],
)
def test_an_objective_is_checked_when_the_file_is_read(tmp_path: Path, lines: str, words: str) -> None:
    (tmp_path / "maps").mkdir()
    with pytest.raises(ConfigError) as raised:
        load(write(tmp_path, f"[decoder]\n{lines}\n"))
    assert words in str(raised.value)


def test_a_list_of_folders_is_relative_to_the_file_and_can_be_made_absolute(tmp_path: Path) -> None:
    for name in ("maps", "monday", "tuesday"):
        (tmp_path / name).mkdir()
    text = '[decoder]\nfolder = "maps"\nobjective = "face - place"\nmore_folders = ["monday", "tuesday"]\n'
    found = load(write(tmp_path, text))
    assert found.decoder.more_folders == (str(tmp_path / "monday"), str(tmp_path / "tuesday"))
    everywhere = absolute(found)
    assert everywhere.decoder.more_folders == (str((tmp_path / "monday").resolve()), str((tmp_path / "tuesday").resolve()))
    (tmp_path / "again.toml").write_text(dump(everywhere), encoding="utf-8")
    assert load(tmp_path / "again.toml") == everywhere


def test_a_localizer_does_not_ask_for_what_is_made_of_it(tmp_path: Path) -> None:
    later = {
        "decoder": {"folder": "decoder", "objective": "?"},
        "evolution": {"pca": "no.npz"},
        "generator": {"unclip_model_path": "model"},
    }
    watch = {"acquisition": {"source": "watch", "folder": str(tmp_path), "tr_s": 2.0}}
    shown = {"localizer": {"folder": str(tmp_path)}}
    assert build({**later, **watch, **shown, "session": {"task": "localizer"}}).localizer.folder == str(tmp_path)
    with pytest.raises(ConfigError) as raised:
        build({**later, **watch, "session": {"task": "localizer"}})
    assert raised.value.mistakes == ["options [localizer] folder: expected a folder of pictures for source 'watch', got none (--folder)"]
    with pytest.raises(ConfigError, match="decoder"):
        build({**later, **watch, **shown})
    assert build({"localizer": {"folder": "gone"}}).localizer.folder == "gone"  # a session does not look at it


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [("gap_s", [3.0, 2.0], "two numbers, 0 <= least <= greatest"), ("targets", 0.5, "0 to 0.3"), ("block_images", 1, "2 to 1000")],
)
def test_rules_of_a_localizer(key: str, value: object, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[localizer\] {key}: expected {rule}"):
        build({"localizer": {key: value}})

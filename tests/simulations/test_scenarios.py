"""Scenarios are found, overridden and refused as a user would expect."""

from pathlib import Path
from typing import get_args

import pytest

from fedveil.config import AdaptiveClipConfig, Mode
from fedveil.settings import ConfigError, parse_override
from fedveil.simulations.scenarios import Scenario, built_in_scenarios, find_scenario


def test_the_built_in_ones_are_valid_and_say_what_they_show() -> None:
    scenarios = built_in_scenarios()
    assert set(scenarios) >= {
        *("digits", "breast-cancer", "heart-disease", "mnist", "fashion-mnist", "adult"),
    }
    for scenario in scenarios.values():
        assert scenario.about
        assert scenario.config().dp.is_private


def test_a_file_is_a_scenario(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('about = "x"\n[task]\nname = "digits"\n[dp]\nunit = "none"\n')
    assert find_scenario(str(path)).config().task.name == "digits"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("= 3", "is not TOML"),
        ('[task]\nname = "digits"', "setting dp is missing"),
        ('about = 3\n[task]\nname = "digits"', "about must be a text"),
        ('[task]\nname = "digits"\ncolour = 1\n[dp]\nunit = "none"', "unknown setting task.colour"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        find_scenario(str(path)).config()
    assert "\n" not in str(caught.value)
    assert "bad.toml" in str(caught.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no scenario 'digit'; built in: adult, breast-cancer"):
        find_scenario("digit")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=3", 3),
        ("a.b=0.5", 0.5),
        ("a.b=true", True),
        ("a.b=text", "text"),
        ('a.b="3"', "3"),
        ("a.b={c = 1}", {"c": 1}),
        ("a.b=a=b", "a=b"),
    ],
)
def test_overrides_read_their_values_as_toml(text: str, value: object) -> None:
    assert parse_override(text) == ("a.b", value)


@pytest.mark.parametrize("text", ["", "a", "=3", " = "])
def test_an_override_needs_key_and_value(text: str) -> None:
    with pytest.raises(ConfigError, match="write it as key=value"):
        parse_override(text)


def test_the_last_word_on_noise_or_budget_holds() -> None:
    config = find_scenario("digits").config([("dp.noise_multiplier", 1.5)])
    assert (config.dp.noise_multiplier, config.dp.target_epsilon) == (1.5, None)
    config = find_scenario("digits").config(
        [("dp.noise_multiplier", 1.5), ("dp.target_epsilon", 3)]
    )
    assert (config.dp.noise_multiplier, config.dp.target_epsilon) == (None, 3.0)


MODED = """
[task]
name = "digits"
[training]
local_steps = 7
[dp]
target_epsilon = 8.0
[modes."record/distributed".training]
local_steps = 1
[modes."client/central".dp]
noise_multiplier = 3.0
"""


@pytest.fixture
def moded(tmp_path: Path) -> Scenario:
    path = tmp_path / "moded.toml"
    path.write_text(MODED)
    return find_scenario(str(path))


def test_a_mode_brings_what_the_scenario_says_of_it(moded: Scenario) -> None:
    assert moded.config().training.local_steps == 7
    by_name = moded.config([], "record/distributed")
    assert (by_name.dp.mode, by_name.training.local_steps) == ("record/distributed", 1)
    assert moded.config([("dp.noise", "distributed")]) == by_name
    central = moded.config([], "client/central")
    assert (central.dp.noise_multiplier, central.dp.target_epsilon) == (3.0, None)
    assert moded.config([], "none").dp.mode == "none"


def test_an_override_wins_over_what_a_mode_brings(moded: Scenario) -> None:
    found = moded.config([("dp.target_epsilon", 2.0)], "client/central")
    assert (found.dp.noise_multiplier, found.dp.target_epsilon) == (None, 2.0)
    with pytest.raises(ConfigError, match="a round is one step"):
        moded.config([("training.local_steps", 2)], "record/distributed")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ('[modes."client/local".dp]\nclip_norm = 1.0', "holds a section for each of some modes"),
        ('[modes]\n"client/central" = 3', "holds a section for each of some modes"),
        ('[modes."client/central".dp]\nnoise = "local"', "must not choose another with dp.noise"),
    ],
)
def test_bad_sections_of_modes_are_refused_in_one_line(
    tmp_path: Path, more: str, says: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f'[task]\nname = "digits"\n[dp]\ntarget_epsilon = 8.0\n{more}\n')
    with pytest.raises(ConfigError, match=says) as caught:
        find_scenario(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no mode 'local'; there are record/local, record/distr"):
        find_scenario("digits").config([], "local")


@pytest.mark.parametrize("name", ["digits", "heart-disease"])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_the_built_in_ones_are_sound_in_every_mode(name: str, mode: str) -> None:
    assert find_scenario(name).config([], mode).dp.mode == mode


def test_an_empty_section_stays_whatever_is_set_after_it() -> None:
    empty = [("dp.adaptive", {}), ("dp.clip_norm", 3.0), ("seed", 4)]
    found = find_scenario("breast-cancer").config(empty, "client/central")
    assert found.dp.adaptive == AdaptiveClipConfig()
    filled = [*empty, ("dp.adaptive.learning_rate", 0.1), ("seed", 5)]
    found = find_scenario("breast-cancer").config(filled, "client/central")
    assert found.dp.adaptive == AdaptiveClipConfig(learning_rate=0.1)

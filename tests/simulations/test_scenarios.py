"""Scenarios are found, overridden and refused as a user would expect."""

from pathlib import Path

import pytest

from fedveil.settings import ConfigError, parse_override
from fedveil.simulations.scenarios import built_in_scenarios, find_scenario


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

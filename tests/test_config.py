"""What makes no sense together is refused in one line, before anybody is asked."""

from __future__ import annotations

import tomllib

import pytest

from fedveil.config import Config, parse_config
from fedveil.settings import ConfigError, Tree, apply_override

BASE: Tree = {"task": {"name": "digits"}, "dp": {"noise_multiplier": 1.0}}


def settings(**changes: object) -> Config:
    tree = BASE
    for key, value in changes.items():
        tree = apply_override(tree, key.replace("__", "."), value)
    return parse_config(tree, "test")


MODES = {
    "record/local": {},
    "record/distributed": {"dp__noise": "distributed", "training__local_steps": 1},
    "client/distributed": {"dp__unit": "client", "dp__noise": "distributed"},
    "client/central": {"dp__unit": "client", "dp__noise": "central"},
    "none": {"dp__unit": "none"},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_can_be_said_and_is_kept(mode: str) -> None:
    config = settings(**MODES[mode])
    assert config.dp.mode == mode
    assert parse_config(tomllib.loads(config.to_toml()), "again") == config


@pytest.mark.parametrize(
    ("mode", "changes", "says"),
    [
        ("record/local", {"dp__noise": "central"}, 'unit = "record" with noise = "central" is no'),
        ("client/central", {"dp__noise": "local"}, "client/distributed and client/central"),
        ("record/distributed", {"secagg__enabled": False}, 'or dp.noise = "local"'),
        ("client/distributed", {"secagg__enabled": False}, 'or dp.noise = "central"'),
        ("record/distributed", {"training__local_steps": 4}, "set it to 1, and federation.rounds"),
        ("record/distributed", {"training__optimizer": "adam"}, 'take "sgd" without options'),
        (
            "record/distributed",
            {"training__optimizer_options": {"momentum": 0.9}},
            "optimizer_options",
        ),
        ("record/distributed", {"server_optimizer__name": "fedprox"}, "no local steps"),
        ("record/distributed", {"training__sampling": "shuffle"}, "cannot be accounted as Poisson"),
        ("record/distributed", {"dp__adaptive": {}}, "adaptive clipping follows the norms of"),
        ("record/local", {"dp__adaptive": {}}, "adaptive clipping follows the norms of"),
        ("client/central", {"dp__metrics": "noisy"}, 'protects records, and unit is "client"'),
        ("client/distributed", {"dp__metrics": "noisy"}, 'protects records, and unit is "client"'),
        ("record/local", {"dp__colluding": 1}, 'is of noise = "distributed"'),
        ("client/central", {"dp__min_survivors": 5}, 'is of noise = "distributed"'),
        ("client/distributed", {"dp__min_survivors": 11}, "more than the 10 clients"),
        (
            "client/distributed",
            {"dp__min_survivors": 3, "dp__colluding": 3},
            "no honest client to add the noise",
        ),
        ("client/distributed", {"dp__min_survivors": 1}, "greater than or equal to 2"),
        ("client/central", {"dp__adaptive__bit_noise": 0.5}, "more than the whole budget"),
        ("client/central", {"dp__adaptive__target_quantile": 1.0}, "less than 1"),
        (
            "client/central",
            {"dp__adaptive": {}, "dp__clip_norm": 101.0},
            "above secagg.clip_norm = 100",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    mode: str, changes: dict[str, object], says: str
) -> None:
    assert settings(**MODES[mode]).dp.mode == mode
    with pytest.raises(ConfigError) as caught:
        settings(**{**MODES[mode], **changes})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_client_may_train_as_it_likes_where_the_whole_client_is_protected() -> None:
    for mode in ("client/distributed", "client/central"):
        freely = {"training__sampling": "shuffle", "training__optimizer": "adam"}
        config = settings(**MODES[mode], **freely)
        assert config.training.local_steps == 4


@pytest.mark.parametrize(
    ("clients", "fraction", "least", "cohort"),
    [(10, 1.0, 2, 10), (10, 0.25, 2, 2), (10, 0.1, 5, 5), (3, 1.0, 3, 3)],
)
def test_the_planned_cohort(clients: int, fraction: float, least: int, cohort: int) -> None:
    config = settings(
        federation__clients=clients, federation__fraction=fraction, federation__min_clients=least
    )
    assert config.federation.cohort == cohort

"""A policy as a value: what it allows and refuses, in whose words, and what is no policy."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from fedveil.privacy.accounting import IntegerSensitivity, Release
from fedveil.privacy.policy import DataSetPolicy, Mode, Policy
from fedveil.privacy.policy_check import PolicyRefusedError, Reason, Request, refusals
from fedveil.privacy.policy_words import policy_in_words

TODAY = date(2027, 6, 30)
FIGURES = ("cardio", "1.75", "0.375", "17", "19", "23", "2027-06-29")
"""What stands in `STRICT` and nowhere in `ASKED`."""

STRICT: dict[str, Any] = {
    "format": "fedveil-policy-1",
    "min_cohort": 5,
    "datasets": {
        "cardio": {
            "tasks": ["digits", "tiny"],
            "epsilon": 8,
            "delta": 1e-5,
            "epsilon_per_run": 2.0,
            "min_noise_multiplier": 1.75,
            "max_clip_norm": 1.75,
            "max_sampling_rate": 0.375,
            "max_local_steps": 17,
            "max_rounds": 19,
        }
    },
}
ASKED = Request(
    task="digits",
    mode="record/local",
    metrics="off",
    secure_aggregation=True,
    cohort=10,
    rounds=3,
    local_steps=4,
    sampling_rate=0.25,
    clip_norm=1.0,
    noise_multiplier=2.0,
    training=Release(0.25, 2.0, 4),
    metrics_noise_multiplier=20.0,
)


def policy(**changes: object) -> Policy:
    return Policy.model_validate({**STRICT, **changes})


def data_set(**changes: object) -> dict[str, object]:
    return {"cardio": {**STRICT["datasets"]["cardio"], **changes}}


def test_what_is_within_every_limit_is_accepted() -> None:
    assert refusals(policy(), ASKED, TODAY) == ()
    assert refusals(policy(expires=TODAY), ASKED, TODAY) == ()


BEYOND = [
    ({"task": "mnist"}, {}, Reason.TASK),
    ({"mode": "none"}, {}, Reason.MODE),
    ({"mode": "client/central"}, {}, Reason.MODE),
    ({"metrics": "clear"}, {}, Reason.METRICS),
    ({"secure_aggregation": False}, {}, Reason.SECURE_AGGREGATION),
    ({"cohort": 4}, {}, Reason.COHORT),
    ({"noise_multiplier": 1.74}, {}, Reason.NOISE),
    ({"noise_multiplier": float("nan")}, {}, Reason.NOISE),
    ({"metrics": "noisy", "metrics_noise_multiplier": 0.5}, {}, Reason.NOISE),
    ({"clip_norm": 1.76}, {}, Reason.CLIP_NORM),
    ({"sampling_rate": 0.376}, {}, Reason.SAMPLING),
    ({"local_steps": 18}, {}, Reason.STEPS),
    ({"rounds": 20}, {}, Reason.ROUNDS),
    ({}, {"expires": date(2027, 6, 29)}, Reason.EXPIRED),
]


@pytest.mark.parametrize(("asked", "rules", "reason"), BEYOND)
def test_what_is_beyond_one_limit_is_refused_for_that_reason(
    asked: dict[str, Any], rules: dict[str, object], reason: Reason
) -> None:
    found = refusals(policy(**rules), replace(ASKED, **asked), TODAY)
    assert [refusal.reason for refusal in found] == [reason]
    told = str(PolicyRefusedError(found[0]))
    assert told.startswith(f"refused by the data owner's policy ({reason}): ")
    assert len(told.splitlines()) == 1
    # The server hears what it sent itself, and nothing of the owner's.
    assert not [figure for figure in FIGURES if figure in told]
    assert found[0].figures in str(PolicyRefusedError(found[0], tell_figures=True))


def test_all_reasons_are_given_at_once() -> None:
    asked = replace(ASKED, secure_aggregation=False, rounds=100, local_steps=100)
    found = {refusal.reason for refusal in refusals(policy(), asked, TODAY)}
    assert found == {Reason.SECURE_AGGREGATION, Reason.ROUNDS, Reason.STEPS}


def test_without_privacy_must_be_said_and_then_allows_privacy_too() -> None:
    open_ = policy(min_cohort=2, datasets={"d": {"tasks": ["digits"], "modes": ["none"]}})
    for asked in (ASKED, replace(ASKED, mode="none", metrics="clear", noise_multiplier=None)):
        assert refusals(open_, asked, TODAY) == ()
    assert open_.datasets["d"].budget is None
    # A mode that nobody here can account is refused even so.
    unknown = replace(ASKED, mode="client/local")
    assert [r.reason for r in refusals(open_, unknown, TODAY)] == [Reason.MODE]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "fedveil-policy-2"}, "fedveil-policy-1"),
        ({"min_cohort": 1}, "greater than or equal to 2"),
        ({"datasets": {}}, "names no data set"),
        ({"typo": 1}, "Extra inputs"),
        ({"secure_aggregation": "no"}, "valid boolean"),
        ({"roster": {"a": "short"}}, "match pattern"),
        ({"datasets": data_set(tasks=[])}, "must not be empty"),
        ({"datasets": data_set(epsilon=None)}, "a budget is missing"),
        ({"datasets": data_set(delta=None)}, "a budget is missing"),
        ({"datasets": data_set(delta=1.0)}, "less than 1"),
        ({"datasets": data_set(epsilon=101)}, "less than or equal to 100"),
        ({"datasets": data_set(epsilon=float("inf"))}, "finite"),
        ({"datasets": data_set(epsilon=float("nan"))}, "finite"),
        ({"datasets": data_set(epsilon="8")}, "valid number"),
        ({"datasets": data_set(epsilon_per_run=9)}, "exceeds epsilon = 8"),
        ({"datasets": data_set(modes=["none"])}, "no epsilon can hold"),
        ({"datasets": data_set(modes=["client/local"])}, "record/local"),
        ({"datasets": data_set(min_noise=1)}, "Extra inputs"),
        (
            {"datasets": data_set(modes=["record/local", "client/central"])},
            "a record here and a client there; no epsilon covers releases of both",
        ),
        ({"datasets": {**data_set(), "b": data_set()["cardio"]}}, "cardio and b"),
        ({"datasets": {"a b": data_set()["cardio"]}}, "match pattern"),
    ],
)
def test_what_contradicts_itself_is_no_policy(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        policy(**changes)


def test_a_charge_is_what_the_message_releases() -> None:
    def charged(purpose: Any, **changes: Any) -> Any:
        return replace(ASKED, **changes).charge(purpose, "cardio", "7", 3, 2)

    training = charged("train")
    assert (training.releases, training.exact) == ((Release(0.25, 2.0, 4),), False)
    assert (training.run, training.round, training.attempt) == ("7", 3, 2)
    assert charged("evaluate", metrics="noisy").releases == (Release(1.0, 20.0, 1),)
    for exact in (
        charged("train", mode="none"),
        charged("evaluate", mode="none", metrics="noisy"),
        charged("evaluate", metrics="clear"),
    ):
        assert exact.exact
        assert exact.releases == ()
    assert charged("train", training=None) is None


@pytest.mark.parametrize(
    ("mode", "unit"),
    [
        ("record/local", "record"),
        ("record/distributed", "record"),
        ("client/distributed", "client"),
        ("client/central", "client"),
    ],
)
def test_a_charge_names_whom_its_mode_protects(mode: str, unit: str) -> None:
    shared = Release(1.0, 2.0, 1, IntegerSensitivity(9.0, 3.0, 9))
    found = replace(ASKED, mode=mode, training=shared).charge("train", "cardio", "7", 1, 1)
    assert found is not None
    assert (found.unit, found.releases) == (unit, (shared,))


@pytest.mark.parametrize("mode", get_args(Mode))
def test_a_mode_is_allowed_only_where_the_owner_lists_it(mode: str) -> None:
    asked = replace(ASKED, mode=mode)
    by_default = [r.reason for r in refusals(policy(), asked, TODAY)]
    assert by_default == ([] if mode == "record/local" else [Reason.MODE])
    limits = {} if mode != "none" else dict.fromkeys(("epsilon", "delta", "epsilon_per_run"))
    rules = data_set(modes=[mode], min_noise_multiplier=None, **limits)
    assert refusals(policy(datasets=rules), asked, TODAY) == ()
    # The mode that trusts the server is never allowed along with another.
    if mode == "client/distributed":
        central = refusals(policy(datasets=rules), replace(ASKED, mode="client/central"), TODAY)
        assert [r.reason for r in central] == [Reason.MODE]


def test_plain_words_name_every_figure() -> None:
    words = "\n".join(policy_in_words(policy(expires=date(2027, 6, 29), roster={})))
    for figure in ("digits, tiny", "8", "2", "1e-05", "5 clients", "nobody", *FIGURES[:5]):
        assert figure in words, figure
    assert "2027-06-29" in words
    assert "WITHOUT" not in words
    modes = {
        "record/distributed": "the clients add in shares, protecting each record",
        "client/distributed": "the clients add in shares, protecting all that this client holds",
        "client/central": "the SERVER adds, which this policy trusts to do so, protecting all",
    }
    for mode, says in modes.items():
        assert says in "\n".join(policy_in_words(policy(datasets=data_set(modes=[mode]))))
    bare = policy(datasets={"d": {"tasks": ["t"], "modes": ["none"]}}, secure_aggregation=False)
    assert "WITHOUT any guarantee" in "\n".join(policy_in_words(bare))
    assert "without secure aggregation is allowed" in "\n".join(policy_in_words(bare))


def test_the_documentation_names_every_setting_and_its_example_is_a_policy() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
    for name in (*Policy.model_fields, *DataSetPolicy.model_fields):
        assert f"`{name}`" in page, name
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert Policy.model_validate(tomllib.loads(example)).datasets["cardiology"].epsilon == 4.0

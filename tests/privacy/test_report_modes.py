"""What a report says of each mode: who must be trusted, what it costs, and in plain words."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from test_report import MECHANISM

from fedveil.privacy.accounting import IntegerSensitivity, Release, epsilon, pld_epsilon
from fedveil.privacy.composition import CompositionError, compose_reports
from fedveil.privacy.journal import Intent
from fedveil.privacy.report import Report, build_report, replay
from fedveil.privacy.report_facts import (
    AdaptiveClip,
    Mechanism,
    RoundFigures,
    RunFacts,
    SharedNoise,
)
from fedveil.privacy.report_html import render_html
from fedveil.privacy.skellam.mechanism import SkellamMechanism

SHARED = SharedNoise(colluding=3, min_survivors=7, ring_bits=32, max_records=1, dimension=650)
RECORD = MECHANISM.model_copy(
    update={
        "noise": "distributed",
        "cohort": 10,
        "steps_per_round": 1,
        "shared": SHARED.model_copy(update={"max_records": 143}),
    }
)
CLIENT = RECORD.model_copy(update={"unit": "client", "shared": SHARED})
CENTRAL = CLIENT.model_copy(update={"noise": "central", "shared": None})
ADAPTIVE = CLIENT.model_copy(
    update={"adaptive": AdaptiveClip(target_quantile=0.5, learning_rate=0.2, bit_noise=4.0)}
)
MODES = {"record/distributed": RECORD, "client/distributed": CLIENT, "client/central": CENTRAL}
NOISE, ROUNDS = 4.0, 3


def release_of(m: Mechanism) -> Release:
    rate = m.sampling_rate if m.unit == "record" else 1.0
    if m.shared is None:
        return Release(rate, NOISE, 1)
    assert m.shared.dimension is not None
    made = SkellamMechanism(
        unit="record" if m.unit == "record" else "client",
        dimension=m.shared.dimension,
        clip_norm=m.clip_norm,
        noise_multiplier=NOISE,
        clients=m.cohort,
        honest=m.shared.honest,
        ring_bits=m.shared.ring_bits,
        max_records=m.shared.max_records,
        bit_noise=m.adaptive.bit_noise if m.adaptive else None,
    )
    return Release(rate, NOISE, 1, made.sensitivity)


def report(mechanism: Mechanism, *, run: str = "r", data: str = "d", secagg: bool = True) -> Report:
    clients = tuple(f"client-{number}" for number in range(mechanism.cohort))
    events = tuple(
        Intent(round=number, attempt=1, clients=clients, releases=(release_of(mechanism),))
        for number in range(1, ROUNDS + 1)
    )
    facts = RunFacts(
        run=run,
        task="digits",
        data=data,
        settings_sha256="s",
        fedveil="0",
        created="now",
        rounds_planned=ROUNDS,
        clients_planned=10,
        public_test=True,
        secagg=secagg,
        mechanism=mechanism,
    )
    rounds = tuple(
        RoundFigures(
            round=number,
            clients=10,
            seconds=0.1,
            accuracy=0.5,
            loss=1.0,
            clip_norm=0.5 / number if mechanism.adaptive else None,
        )
        for number in range(1, ROUNDS + 1)
    )
    return build_report(facts, events, rounds, None)


@pytest.mark.parametrize("mode", MODES)
def test_the_run_costs_what_its_releases_cost_together(mode: str) -> None:
    found = report(MODES[mode])
    whole = replace(release_of(MODES[mode]), count=ROUNDS)
    assert (found.mode, found.claims) == (mode, True)
    assert found.epsilon == epsilon([whole], 1e-5)
    assert found.method == "PLD"
    assert found.accountant.startswith("dp-accounting")
    # As sharp as one server's Gaussian noise, but for a hundredth.
    gaussian = pld_epsilon([replace(whole, integers=None)], 1e-5)
    assert gaussian <= found.epsilon <= 1.01 * gaussian
    assert Report.model_validate_json(found.model_dump_json()) == found == replay(found)


def test_exchanging_one_client_costs_twice_the_distance() -> None:
    central = report(CENTRAL)
    half = Release(1.0, NOISE / 2.0, ROUNDS)
    assert central.epsilon_replace_one == epsilon([half], 1e-5)
    shared = report(CLIENT)
    one = release_of(CLIENT).integers
    assert one is not None
    twice = IntegerSensitivity(2.0 * one.l1, 2.0 * one.l2, one.coordinates)
    assert shared.epsilon_replace_one == epsilon([replace(half, integers=twice)], 1e-5)
    assert shared.epsilon is not None
    assert shared.epsilon_replace_one > shared.epsilon
    assert report(RECORD).epsilon_replace_one is None


def test_the_noise_is_told_in_integer_units() -> None:
    for mechanism in (RECORD, CLIENT, ADAPTIVE):
        found = report(mechanism).skellam
        release = release_of(mechanism)
        assert found is not None
        assert release.integers == found.sensitivity
        assert found.noise_std == pytest.approx(NOISE * found.sensitivity.l2)
        # Four honest clients bring it all.
        assert found.share_std == pytest.approx(found.noise_std / 2.0)
        assert found.scale > 0.0
        assert 0.0 <= found.wrap_probability < 1e-6
    assert report(CENTRAL).skellam is None


SAYS = {
    "record/distributed": (
        "hardly depends on any single record",
        "at most 3 of the data owners",
        "the other 4 of at least 7 bring the whole noise",
        "0.25 x 143 x 10 = 357.5",
    ),
    "client/distributed": (
        "hardly depends on any single data owner",
        "at most 3 of the data owners",
        "divided by 10, the planned number of clients",
        "then the epsilon does not hold",
    ),
    "client/central": (
        "trusted to add the noise",
        "Against the server nothing is claimed",
        "<b>No.</b> The server sees exact sums",
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_page_says_for_whom_it_holds_and_who_is_trusted(mode: str) -> None:
    page = render_html(report(MODES[mode]))
    for words in SAYS[mode]:
        assert words in page.replace("&#39;", "'"), words
    assert ("<b>No.</b> The server" in page) == (mode == "client/central")
    assert ("is exchanged for another" in page) == mode.startswith("client/")


def test_a_trusted_server_without_secure_aggregation_sees_each_update() -> None:
    found = report(CENTRAL, secagg=False)
    assert "each owner's exact update" in found.plain_words
    assert "each client's clipped update, exactly" in found.trust[0]


def test_who_counts_on_every_share_says_that_the_others_can_take_off_theirs() -> None:
    all_of_them = CLIENT.model_copy(update={"shared": SHARED.model_copy(update={"colluding": 0})})
    assert any(
        "each client can take off its own" in line for line in report(all_of_them).not_covered
    )
    assert not any("take off its own" in line for line in report(CLIENT).not_covered)


def test_the_path_of_an_adaptive_clip_norm_is_shown() -> None:
    found = report(ADAPTIVE)
    page = render_html(found)
    assert "following the 0.5 quantile" in page
    assert page.count("<svg") == render_html(report(CLIENT)).count("<svg") + 1
    assert [r.clip_norm for r in found.rounds] == [0.5, 0.25, 0.5 / 3]
    assert any("follows the 0.5 quantile" in line for line in found.assumptions)


def test_without_a_guarantee_no_mode_claims_anything() -> None:
    for mechanism in MODES.values():
        found = report(mechanism.model_copy(update={"insecure_seed": True}))
        assert (found.epsilon, found.epsilon_replace_one, found.plain_words) == (None, None, "")
        assert 'class="claim none"' in render_html(found)


def test_runs_of_one_unit_compose_and_of_two_do_not() -> None:
    local = report(MECHANISM.model_copy(update={"cohort": 10}), run="a")
    shared = report(RECORD, run="b")
    both = compose_reports([local, shared])
    assert both.method == "PLD"
    assert both.epsilon == epsilon(
        [Release(0.25, NOISE, ROUNDS), replace(release_of(RECORD), count=ROUNDS)], 1e-5
    )
    with pytest.raises(CompositionError, match="protects a record and run c a client"):
        compose_reports([local, report(CENTRAL, run="c")])
    assert compose_reports([report(CLIENT, run="a"), report(CENTRAL, run="b")]).unit == "client"
    with pytest.raises(CompositionError, match="a client of one is none of the other"):
        compose_reports([report(CENTRAL, run="a"), report(CENTRAL, run="b", data="e")])


def test_the_json_of_a_report_names_its_mode_and_schema() -> None:
    told = json.loads(report(CLIENT).model_dump_json())
    assert (told["schema_version"], told["mode"]) == (5, "client/distributed")
    assert told["facts"]["mechanism"]["shared"]["min_survivors"] == 7
    assert told["skellam"]["sensitivity"]["l2"] > 0

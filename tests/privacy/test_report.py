"""What is shown of an epsilon is never less than it is, and the page stands alone."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.journal import PrivacyJournal
from fedveil.privacy.report import Report, build_report
from fedveil.privacy.report_facts import Mechanism, ModelFacts, RoundFigures, RunFacts
from fedveil.privacy.report_html import render_html
from fedveil.privacy.report_words import rounded_up

MECHANISM = Mechanism(
    unit="record",
    noise="local",
    delta=1e-5,
    clip_norm=1.0,
    sampling_rate=0.25,
    nominal_records=143,
    steps_per_round=4,
    cohort=3,
    target_epsilon=3.0,
    metrics="off",
    insecure_seed=False,
)


def report(path: Path, mechanism: Mechanism = MECHANISM, task: str = "digits") -> Report:
    journal = PrivacyJournal(path / "privacy.jsonl")
    for number in (1, 2):
        journal.intend(number, ["client-0", "client-1"], [Release(0.25, 3.3, 4)])
    journal.intend(2, ["client-10"], [Release(0.25, 3.3, 4)])
    facts = RunFacts(
        run="r",
        task=task,
        data="d",
        settings_sha256="s",
        fedveil="0",
        created="now",
        rounds_planned=2,
        clients_planned=3,
        public_test=True,
        secagg=True,
        mechanism=mechanism,
    )
    rounds = tuple(
        RoundFigures(round=n, clients=2, seconds=0.1, accuracy=0.5, loss=1.0) for n in (1, 2)
    )
    return build_report(facts, journal.entries, rounds, ModelFacts(round=2, sha256="ab"))


@given(st.floats(0.0, 100.0))
def test_what_is_shown_is_never_less(epsilon: float) -> None:
    shown = float(rounded_up(epsilon))
    assert epsilon - 2e-12 <= shown <= epsilon + 1e-3 + 1e-9
    assert math.isfinite(shown)


def test_the_run_costs_the_most_that_any_client_spent(tmp_path: Path) -> None:
    found = report(tmp_path)
    assert [c.client for c in found.clients] == ["client-0", "client-1", "client-10"]
    assert [c.steps for c in found.clients] == [8, 8, 4]
    assert found.epsilon == pld_epsilon([Release(0.25, 3.3, 8)], 1e-5)
    assert found.clients[2].epsilon == pld_epsilon([Release(0.25, 3.3, 4)], 1e-5)
    assert found.clients[0].epsilon_by_round[2] == found.epsilon
    assert found.target_met is True


def test_a_budget_that_was_passed_is_told(tmp_path: Path) -> None:
    tight = MECHANISM.model_copy(update={"target_epsilon": 0.5})
    found = report(tmp_path, tight)
    assert found.target_met is False
    assert "EXCEEDED" in render_html(found)


@pytest.mark.parametrize("change", [{"unit": "none"}, {"insecure_seed": True}])
def test_without_a_guarantee_nothing_is_claimed(tmp_path: Path, change: dict[str, object]) -> None:
    found = report(tmp_path, MECHANISM.model_copy(update=change))
    assert (found.claims, found.epsilon, found.assumptions) == (False, None, ())
    assert {c.epsilon for c in found.clients} == {None}
    assert 'class="claim none"' in render_html(found)


def test_the_page_stands_alone_and_lets_nothing_in(tmp_path: Path) -> None:
    page = render_html(report(tmp_path, task="<script>alert(1)</script>"))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", page.replace('xlink:href="#', "#"))
    assert page.count("<svg") == 4
    for section in ("What is claimed", "Who must be trusted", "What is not covered"):
        assert section in page


def test_the_same_report_is_the_same_page(tmp_path: Path) -> None:
    found = report(tmp_path)
    assert render_html(found) == render_html(found)

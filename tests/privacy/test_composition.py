"""Several runs on one data set cost what their releases cost together, and nothing is made up."""

from __future__ import annotations

import pytest

from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.composition import CompositionError, compose_reports
from fedveil.privacy.journal import Intent
from fedveil.privacy.report import Report, build_report
from fedveil.privacy.report_facts import Mechanism, RunFacts

MECHANISM = Mechanism(
    unit="record",
    noise="local",
    delta=1e-5,
    clip_norm=1.0,
    sampling_rate=0.25,
    nominal_records=143,
    steps_per_round=4,
    cohort=10,
    target_epsilon=None,
    metrics="off",
    insecure_seed=False,
)
STEP = Release(0.25, 3.0, 4)


def with_events(name: str, released: dict[str, Release], data: str = "d") -> Report:
    """Return the report of a run in which each client made a release of its own."""
    events = [
        Intent(round=number, attempt=1, clients=(client,), releases=(release,))
        for number, (client, release) in enumerate(released.items(), start=1)
    ]
    of = run(name, {"client-0": 1}, data=data)
    return build_report(of.facts, events, (), None)


def run(
    name: str,
    clients: dict[str, int],
    *,
    data: str = "d",
    task: str = "digits",
    **mechanism: object,
) -> Report:
    """Return the report of a run in which each client took part in so many rounds."""
    events = tuple(
        Intent(
            round=number,
            attempt=1,
            clients=tuple(c for c, rounds in clients.items() if rounds >= number),
            releases=(STEP,),
        )
        for number in range(1, max(clients.values()) + 1)
    )
    facts = RunFacts(
        run=name,
        task=task,
        data=data,
        settings_sha256="",
        fedveil="0",
        created="now",
        rounds_planned=9,
        clients_planned=2,
        public_test=True,
        secagg=True,
        mechanism=MECHANISM.model_copy(update=mechanism),
    )
    return build_report(facts, events, (), None)


def test_the_same_clients_runs_are_composed_and_the_dearest_client_counts() -> None:
    found = compose_reports(
        [run("a", {"client-0": 1, "client-1": 5}), run("b", {"client-0": 6, "client-2": 2})]
    )
    cost = {c.client: c.epsilon for c in found.clients}
    assert cost["client-0"] == pld_epsilon([Release(0.25, 3.0, 28)], 1e-5)
    assert cost["client-1"] == pld_epsilon([Release(0.25, 3.0, 20)], 1e-5)
    assert cost["client-2"] == pld_epsilon([Release(0.25, 3.0, 8)], 1e-5)
    assert found.epsilon == cost["client-0"]
    # Composing is dearer than either run, and cheaper than adding epsilons up.
    assert cost["client-1"] < found.epsilon < found.epsilon_added


def test_disjoint_clients_cost_the_maximum() -> None:
    parts = [run("a", {"client-0": 3}), run("b", {"client-1": 5})]
    assert compose_reports(parts).epsilon == max(part.epsilon or 0.0 for part in parts)


def test_another_division_of_the_data_composes_the_most_of_each() -> None:
    found = compose_reports(
        [run("a", {"client-0": 3}), run("b", {"client-0": 1, "client-1": 5}, data="other")]
    )
    assert found.epsilon == pld_epsilon([Release(0.25, 3.0, 32)], 1e-5)
    assert "divided the data differently" in found.notes[0]


def test_attack_a_client_that_is_cheaper_alone_and_dearer_together() -> None:
    """Which client is the dearest depends on what is composed with its releases."""
    few, many = Release(1.0, 1.0, 1), Release(0.01, 0.6, 187)
    beside = Release(1.0, 0.5, 1)
    alone = [pld_epsilon([release], 1e-5) for release in (few, many)]
    together = [pld_epsilon([release, beside], 1e-5) for release in (few, many)]
    assert (alone[0] > alone[1]) != (together[0] > together[1])
    found = compose_reports(
        [
            with_events("a", {"client-0": few, "client-1": many}),
            with_events("b", {"client-0": beside}, data="other"),
        ]
    )
    assert found.epsilon >= max(together)


def test_different_deltas_are_computed_anew_at_the_smallest() -> None:
    found = compose_reports([run("a", {"client-0": 3}), run("b", {"client-0": 3}, delta=1e-7)])
    assert found.delta == 1e-7
    assert found.epsilon == pld_epsilon([Release(0.25, 3.0, 24)], 1e-7)
    assert "computed anew at 1e-07" in found.notes[0]


def test_what_does_not_belong_together_is_refused() -> None:
    one = run("a", {"client-0": 1})
    other = run("b", {"client-0": 1})
    other = other.model_copy(update={"neighbouring_relation": "one client more"})
    for reports, says in (
        ([one], "at least two"),
        ([one, one], "named twice"),
        ([one, run("b", {"client-0": 1}, task="mnist")], "the same data set only"),
        ([one, run("b", {"client-0": 1}, insecure_seed=True)], "run b claims no privacy"),
        ([one, run("b", {"client-0": 1}, unit="none", noise="none")], "nothing can be claimed"),
        ([one, other], "not comparable"),
    ):
        with pytest.raises(CompositionError, match=says):
            compose_reports(reports)

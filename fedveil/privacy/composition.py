"""What several runs on the same data cost together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fedveil.errors import FedveilError
from fedveil.privacy.accounting import (
    Accountant,
    Release,
    accountant_of_largest,
    compose,
    epsilon,
    rdp_epsilon,
)
from fedveil.privacy.report import Report
from fedveil.privacy.report_words import rounded_up

__all__ = ["ClientTotal", "Composition", "CompositionError", "compose_reports"]


class CompositionError(FedveilError):
    """Runs cannot be put together into one claim."""


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClientTotal(_Value):
    """What one client released over all runs."""

    client: str
    runs: tuple[str, ...]
    releases: tuple[Release, ...]
    epsilon: float
    epsilon_rdp: float


class Composition(_Value):
    """Several runs as one.

    Parameters
    ----------
    runs : tuple of str
        Their names.
    task : str
        What they trained.
    unit : str
        Unit of privacy of all of them.
    neighbouring_relation : str
        Of all of them.
    delta : float
        The smallest of the runs' deltas; every epsilon is computed anew at it.
    epsilon : float
        The largest of any client.
    epsilon_added : float
        The sum of the runs' own epsilons, as a naive reader would have it.
    clients : tuple of ClientTotal
        One for each client; one for all where the runs divided the data differently.
    notes : tuple of str
        What was done to make the runs comparable.
    statement : str
        The claim.
    """

    schema_version: Literal[1] = 1
    runs: tuple[str, ...]
    task: str
    unit: str
    neighbouring_relation: str
    delta: float
    epsilon: float
    epsilon_added: float
    clients: tuple[ClientTotal, ...]
    notes: tuple[str, ...]
    statement: str

    @property
    def method(self) -> Accountant:
        """What epsilon is computed by."""
        return accountant_of_largest([c.releases for c in self.clients], self.delta)


def compose_reports(reports: Sequence[Report]) -> Composition:
    """Compose runs on the same data set.

    A client's releases in all runs are composed, then the largest epsilon of any client is the
    whole's: clients hold different records (parallel composition). Where the runs divided the
    data differently, a client of one may hold the records of any client of another, so that the
    most that any client of each released is composed.

    Parameters
    ----------
    reports : sequence of Report
        At least two, of different runs.

    Raises
    ------
    CompositionError
        If the runs do not belong together, or one of them claims nothing.
    """
    _check(reports)
    deltas = {r.facts.mechanism.delta for r in reports}
    delta = min(deltas)
    notes = []
    if len(deltas) > 1:
        shown = ", ".join(f"{r.facts.run}: {r.facts.mechanism.delta:g}" for r in reports)
        notes.append(
            f"The runs have different deltas ({shown}). All epsilons were computed anew at "
            f"{delta:g}, from the releases; epsilons at different deltas do not add up."
        )
    if len({r.facts.data for r in reports}) == 1:
        totals = _by_client(reports, delta)
    else:
        notes.append(
            "The runs divided the data differently, so that a client of one may hold the records "
            "of any client of another: the most that any client of each released is composed."
        )
        totals = (_any_client(reports, delta),)
    largest = max((total.epsilon for total in totals), default=0.0)
    unit = reports[0].facts.mechanism.unit
    shown = rounded_up(largest)
    return Composition(
        runs=tuple(r.facts.run for r in reports),
        task=reports[0].facts.task,
        unit=unit,
        neighbouring_relation=reports[0].neighbouring_relation,
        delta=delta,
        epsilon=largest,
        epsilon_added=sum(r.epsilon or 0.0 for r in reports),
        clients=totals,
        notes=tuple(notes),
        statement=(
            f"All {len(reports)} runs together are ({shown}, {delta:g})-differentially private "
            f"for every {unit}. Runs that are not named here add to it."
        ),
    )


def _check(reports: Sequence[Report]) -> None:
    if len(reports) < 2:
        raise CompositionError("name at least two runs to compose")
    first = reports[0]
    seen: set[str] = set()
    for report in reports:
        run = report.facts.run
        if run in seen:
            raise CompositionError(f"run {run} is named twice; it counts once")
        seen.add(run)
        if not report.claims:
            raise CompositionError(
                f"run {run} claims no privacy, so that together with it nothing can be claimed"
            )
        if report.facts.task != first.facts.task:
            raise CompositionError(
                f"run {first.facts.run} trained {first.facts.task} and run {run} "
                f"{report.facts.task}: compose runs on the same data set only"
            )
        if report.neighbouring_relation != first.neighbouring_relation:
            raise CompositionError(
                f"run {first.facts.run} protects a {first.facts.mechanism.unit} and run {run} a "
                f"{report.facts.mechanism.unit}: epsilons for different neighbours are not "
                "comparable"
            )
        if report.facts.mechanism.unit == "client" and report.facts.data != first.facts.data:
            raise CompositionError(
                f"runs {first.facts.run} and {run} divided the data differently, so that a client "
                "of one is none of the other, and nothing can be claimed for a client of both"
            )


def _by_client(reports: Sequence[Report], delta: float) -> tuple[ClientTotal, ...]:
    names = {c.client for r in reports for c in r.clients}
    totals = []
    for name in sorted(names, key=lambda n: (len(n), n)):
        own = [(r.facts.run, c.releases) for r in reports for c in r.clients if c.client == name]
        totals.append(_total(name, own, delta))
    return tuple(totals)


def _any_client(reports: Sequence[Report], delta: float) -> ClientTotal:
    own = [(r.facts.run, _at_most(c.releases for c in r.clients)) for r in reports]
    return _total("any client", own, delta)


def _at_most(clients: Iterable[tuple[Release, ...]]) -> tuple[Release, ...]:
    """Return of each kind of release as many as any client made.

    Not those of the client with the largest epsilon: that order may turn round when other
    releases are composed with them.
    """
    most = Counter[Release]()
    for releases in clients:
        most |= Counter({replace(r, count=1): r.count for r in compose(releases)})
    return compose(replace(kind, count=count) for kind, count in most.items())


def _total(name: str, own: Sequence[tuple[str, tuple[Release, ...]]], delta: float) -> ClientTotal:
    together = compose(release for _, releases in own for release in releases)
    return ClientTotal(
        client=name,
        runs=tuple(run for run, _ in own),
        releases=together,
        epsilon=epsilon(together, delta),
        epsilon_rdp=rdp_epsilon(together, delta),
    )

"""The privacy report as data: what is claimed, from which releases, under which assumptions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedveil.privacy.accounting import (
    VALUE_DISCRETIZATION_INTERVAL,
    Accountant,
    IntegerSensitivity,
    Release,
    accountant_of_largest,
    epsilon,
    rdp_epsilon,
)
from fedveil.privacy.audit.result import AuditResult
from fedveil.privacy.journal import Charges, Done, Intent, newest_noise
from fedveil.privacy.report_facts import Mechanism, ModelFacts, RoundFigures, RunFacts
from fedveil.privacy.report_words import (
    assumptions_of,
    neighbours_of,
    not_covered_by,
    plain_words,
    statement_of,
    trust_of,
)
from fedveil.privacy.skellam.mechanism import SkellamMechanism

__all__ = [
    "SCHEMA_VERSION",
    "ClientSpend",
    "Report",
    "SkellamFigures",
    "build_report",
    "replay",
]

SCHEMA_VERSION = 5

_ACCOUNTANTS = {
    "PLD": (
        "dp-accounting, privacy-loss distributions, value_discretization_interval = "
        f"{VALUE_DISCRETIZATION_INTERVAL:g}; Skellam noise as Gaussian noise, and what they differ "
        "by; Rényi DP beside it"
    ),
    "RDP": (
        "Rényi DP over integer orders, of Skellam noise by Agarwal, Kairouz & Liu 2021; Gaussian "
        "releases beside it by dp-accounting"
    ),
}


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SkellamFigures(_Value):
    """Distributed noise in numbers, as the newest round had it.

    Parameters
    ----------
    scale : float
        Integer units in one unit of the vector.
    sensitivity : IntegerSensitivity
        What one record or client can change in the sum, rounding included, in integer units.
    noise_std : float
        Standard deviation of the honest noise in a coordinate of the sum, in integer units.
    share_std : float
        The same of one client's share.
    wrap_probability : float
        Bound of the probability that a coordinate of the sum leaves the ring. That would cost
        accuracy, and no privacy.
    """

    scale: float
    sensitivity: IntegerSensitivity
    noise_std: float
    share_std: float
    wrap_probability: float


class ClientSpend(_Value):
    """What one client released, and what it cost."""

    client: str
    steps: int
    rounds: int
    releases: tuple[Release, ...]
    epsilon: float | None
    epsilon_rdp: float | None
    epsilon_by_round: dict[int, float]


Event = Annotated[Intent | Done, Field(discriminator="event")]


class Report(_Value):
    """The whole report; `schema_version` names this layout.

    `facts`, `rounds`, `model`, `audit` and `events` are what is known; all the rest follows from
    them, as `replay` does. `epsilon_replace_one` stands beside epsilon for the unit ``client``: it
    holds for exchanging one client for another.
    """

    schema_version: Literal[5] = 5
    facts: RunFacts
    mode: str
    claims: bool
    statement: str
    plain_words: str
    epsilon: float | None
    epsilon_replace_one: float | None
    target_met: bool | None
    neighbouring_relation: str
    accountant: str
    skellam: SkellamFigures | None
    rounds: tuple[RoundFigures, ...]
    clients: tuple[ClientSpend, ...]
    trust: tuple[str, ...]
    assumptions: tuple[str, ...]
    not_covered: tuple[str, ...]
    model: ModelFacts | None
    audit: AuditResult | None
    events: tuple[Event, ...]

    @property
    def accuracy(self) -> float | None:
        """Accuracy after the last round in which it is known."""
        known = [r.accuracy for r in self.rounds if r.accuracy is not None]
        return known[-1] if known else None

    @property
    def method(self) -> Accountant:
        """What epsilon is computed by."""
        return _method_of(self.clients, self.facts.mechanism)


def replay(report: Report) -> Report:
    """Compute a report's figures anew from its own events."""
    return build_report(report.facts, report.events, report.rounds, report.model, report.audit)


def build_report(
    facts: RunFacts,
    events: Sequence[Intent | Done],
    rounds: tuple[RoundFigures, ...],
    model: ModelFacts | None,
    audit: AuditResult | None = None,
) -> Report:
    """Compute every figure from what the journal holds.

    The clients hold different records, so the run costs a record, and a client, the largest
    epsilon of any client, not the sum (parallel composition; McSherry 2009, theorem 4).

    Raises
    ------
    FedveilError
        If the mechanism that the facts describe cannot be.
    """
    mechanism = facts.mechanism
    clients = _spend(events, mechanism)
    spent = [c.epsilon for c in clients if c.epsilon is not None]
    largest = max(spent, default=0.0) if mechanism.claims else None
    target = mechanism.target_epsilon
    accountant = _method_of(clients, mechanism)
    return Report(
        facts=facts,
        mode=mechanism.mode,
        claims=mechanism.claims,
        statement=statement_of(mechanism, largest),
        plain_words=plain_words(facts),
        epsilon=largest,
        epsilon_replace_one=_replace_one(clients, mechanism),
        target_met=None if target is None or largest is None else largest <= target,
        neighbouring_relation=neighbours_of(mechanism),
        accountant="none" if mechanism.unit == "none" else _ACCOUNTANTS[accountant],
        skellam=_skellam(events, mechanism),
        rounds=rounds,
        clients=clients,
        trust=trust_of(facts),
        assumptions=assumptions_of(mechanism),
        not_covered=not_covered_by(mechanism, public_test=facts.public_test, secagg=facts.secagg),
        model=model,
        audit=audit,
        events=tuple(events),
    )


def _method_of(clients: Sequence[ClientSpend], mechanism: Mechanism) -> Accountant:
    if not mechanism.claims:
        return "PLD"
    return accountant_of_largest([c.releases for c in clients], mechanism.delta)


def _spend(events: Sequence[Intent | Done], mechanism: Mechanism) -> tuple[ClientSpend, ...]:
    intents = [e for e in events if isinstance(e, Intent)]
    charges = Charges(events)
    rounds_of: dict[str, set[int]] = defaultdict(set)
    for intent in intents:
        for client in intent.clients:
            rounds_of[client].add(intent.round)
    epsilon_by_round: dict[str, dict[int, float]] = defaultdict(dict)
    if mechanism.claims:
        for number in sorted({i.round for i in intents}):
            until = charges.releases_by_client(until_round=number)
            for client in (c for c, rounds in rounds_of.items() if number in rounds):
                epsilon_by_round[client][number] = epsilon(until[client], mechanism.delta)
    steps, released = charges.steps_by_client(), charges.releases_by_client()
    return tuple(
        ClientSpend(
            client=client,
            steps=steps[client],
            rounds=len(rounds_of[client]),
            releases=released[client],
            epsilon=epsilon(released[client], mechanism.delta) if mechanism.claims else None,
            epsilon_rdp=(
                rdp_epsilon(released[client], mechanism.delta) if mechanism.claims else None
            ),
            epsilon_by_round=epsilon_by_round[client],
        )
        # client-2 before client-10
        for client in sorted(rounds_of, key=lambda name: (len(name), name))
    )


def _replace_one(clients: Sequence[ClientSpend], mechanism: Mechanism) -> float | None:
    """Return epsilon for exchanging one client for another: at most twice the distance."""
    if mechanism.unit != "client" or not mechanism.claims:
        return None
    together = {client.releases for client in clients}
    return max(
        (epsilon([_doubled(r) for r in releases], mechanism.delta) for releases in together),
        default=0.0,
    )


def _doubled(release: Release) -> Release:
    integers = release.integers
    return replace(
        release,
        noise_multiplier=release.noise_multiplier / 2.0,
        integers=integers and replace(integers, l1=2.0 * integers.l1, l2=2.0 * integers.l2),
    )


def _skellam(events: Sequence[Intent | Done], mechanism: Mechanism) -> SkellamFigures | None:
    shared = mechanism.shared
    noise = newest_noise(events)
    if shared is None or shared.dimension is None or mechanism.unit == "none" or noise is None:
        return None
    made = SkellamMechanism(
        unit=mechanism.unit,
        dimension=shared.dimension,
        clip_norm=mechanism.clip_norm,
        noise_multiplier=noise,
        clients=mechanism.cohort,
        honest=shared.honest,
        ring_bits=shared.ring_bits,
        max_records=shared.max_records,
        bit_noise=None if mechanism.adaptive is None else mechanism.adaptive.bit_noise,
    )
    return SkellamFigures(
        scale=made.scale,
        sensitivity=made.sensitivity,
        noise_std=noise * made.sensitivity.l2,
        share_std=made.share_variance**0.5,
        wrap_probability=made.wrap_probability,
    )

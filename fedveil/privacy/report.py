"""The privacy report as data: what is claimed, from which releases, under which assumptions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedveil.privacy.accounting import (
    VALUE_DISCRETIZATION_INTERVAL,
    Release,
    pld_epsilon,
    rdp_epsilon,
)
from fedveil.privacy.audit.result import AuditResult
from fedveil.privacy.journal import Charges, Done, Intent

__all__ = [
    "SCHEMA_VERSION",
    "ClientSpend",
    "Mechanism",
    "ModelFacts",
    "Report",
    "RoundFigures",
    "RunFacts",
    "assumptions_of",
    "build_report",
    "not_covered_by",
    "replay",
    "rounded_down",
    "rounded_up",
]

SCHEMA_VERSION = 3


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mechanism(_Value):
    """How the noise is made; all of it public and configured.

    Parameters
    ----------
    unit : {"record", "none"}
        Whom the guarantee holds for.
    noise : {"local", "none"}
        Who adds the noise.
    delta, clip_norm, sampling_rate, nominal_records : float or int
        As configured.
    steps_per_round : int
        Optimiser steps of a client in a round.
    target_epsilon : float, optional
        What the run was calibrated to.
    metrics : {"off", "noisy", "clear"}
        What clients release of their own test records.
    insecure_seed : bool
        Whether noise was reproducible.
    """

    unit: Literal["record", "none"]
    noise: Literal["local", "none"]
    delta: float
    clip_norm: float
    sampling_rate: float
    nominal_records: int
    steps_per_round: int
    target_epsilon: float | None
    metrics: Literal["off", "noisy", "clear"]
    insecure_seed: bool

    @property
    def claims(self) -> bool:
        """Whether any guarantee is claimed."""
        return self.unit != "none" and not self.insecure_seed


class RunFacts(_Value):
    """Which run it is.

    Parameters
    ----------
    data : str
        Hash of what says which client holds which record: task, options, partition, clients, seed.
        Where it is the same, clients of one name hold the same records.
    settings_sha256 : str
        Of the run's ``config.toml``.
    """

    run: str
    task: str
    data: str
    settings_sha256: str
    fedveil: str
    created: str
    rounds_planned: int
    clients_planned: int
    public_test: bool
    secagg: bool
    mechanism: Mechanism


class RoundFigures(_Value):
    """One committed round; `accuracy` and `loss` where they are known."""

    round: int
    clients: int
    seconds: float
    accuracy: float | None
    loss: float | None


class ModelFacts(_Value):
    """The newest committed model: its round and the sha256 of its encrypted file."""

    round: int
    sha256: str


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
    them, as `replay` does.
    """

    schema_version: Literal[3] = 3
    facts: RunFacts
    claims: bool
    statement: str
    epsilon: float | None
    target_met: bool | None
    neighbouring_relation: str
    accountant: str
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


def rounded_up(epsilon: float) -> str:
    """Return an epsilon to three decimals, never less than it is."""
    return f"{math.ceil(epsilon * 1e3 - 1e-9) / 1e3:.3f}"


def rounded_down(bound: float) -> str:
    """Return a lower bound to three decimals, never more than it is."""
    return f"{math.floor(bound * 1e3 + 1e-9) / 1e3:.3f}"


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

    The clients hold different records, so the run costs a record the largest epsilon of any
    client, not the sum (parallel composition; McSherry 2009, theorem 4).
    """
    mechanism = facts.mechanism
    clients = _spend(events, mechanism)
    spent = [c.epsilon for c in clients if c.epsilon is not None]
    epsilon = max(spent, default=0.0) if mechanism.claims else None
    target = mechanism.target_epsilon
    return Report(
        facts=facts,
        claims=mechanism.claims,
        statement=_statement(mechanism, epsilon),
        epsilon=epsilon,
        target_met=None if target is None or epsilon is None else epsilon <= target,
        neighbouring_relation=(
            "two data sets of a client are neighbours when one has one training record more"
            if mechanism.unit == "record"
            else "none"
        ),
        accountant=(
            "dp-accounting, privacy-loss distributions, value_discretization_interval = "
            f"{VALUE_DISCRETIZATION_INTERVAL:g}; Rényi DP beside it"
            if mechanism.unit == "record"
            else "none"
        ),
        rounds=rounds,
        clients=clients,
        trust=_trust(facts),
        assumptions=assumptions_of(mechanism),
        not_covered=not_covered_by(mechanism, public_test=facts.public_test, secagg=facts.secagg),
        model=model,
        audit=audit,
        events=tuple(events),
    )


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
                epsilon_by_round[client][number] = pld_epsilon(until[client], mechanism.delta)
    steps, released = charges.steps_by_client(), charges.releases_by_client()
    return tuple(
        ClientSpend(
            client=client,
            steps=steps[client],
            rounds=len(rounds_of[client]),
            releases=released[client],
            epsilon=pld_epsilon(released[client], mechanism.delta) if mechanism.claims else None,
            epsilon_rdp=(
                rdp_epsilon(released[client], mechanism.delta) if mechanism.claims else None
            ),
            epsilon_by_round=epsilon_by_round[client],
        )
        # client-2 before client-10
        for client in sorted(rounds_of, key=lambda name: (len(name), name))
    )


def _statement(mechanism: Mechanism, epsilon: float | None) -> str:
    if mechanism.unit == "none":
        return (
            'No privacy is claimed: the run asked for dp.unit = "none". Clients sent exact '
            "weights, from which records can be inferred."
        )
    if mechanism.insecure_seed:
        return (
            "No privacy is claimed: the run used dp.insecure_seed, so that anybody who knows the "
            "seed can subtract the noise."
        )
    shown = rounded_up(epsilon or 0.0)
    return (
        f"For every client, training is ({shown}, {mechanism.delta:g})-differentially private: "
        "whether one record was among the client's training records changes the probability of "
        f"anything that the client sent by a factor of at most e^{shown}, but for a probability "
        f"of {mechanism.delta:g}."
    )


def _trust(facts: RunFacts) -> tuple[str, ...]:
    if not facts.mechanism.claims:
        who = "the sum of the clients' updates" if facts.secagg else "the clients' updates"
        return (f"Everybody who sees {who} or the model, for want of any guarantee.",)
    seen = (
        "The server sees sums over clients, by secure aggregation, and nobody's own update."
        if facts.secagg
        else "The server sees each client's update, with that client's noise in it."
    )
    return (
        "Each data owner's own machine, its operating system's random numbers, and the Fedveil, "
        "Opacus and PyTorch code that runs on it: the noise is added there.",
        "Nobody else: not the server, not the other clients, not whoever holds the model. " + seen,
    )


def assumptions_of(mechanism: Mechanism) -> tuple[str, ...]:
    """Return what the claim rests on, one sentence each; nothing where nothing is claimed."""
    m = mechanism
    if not m.claims:
        return ()
    return (
        "No record lies with two clients, and no two records belong to one person who is to be "
        "protected as one.",
        "Each step takes each record with probability "
        f"{m.sampling_rate:g}, independently, from a cryptographic generator (Poisson sampling).",
        f"Noisy sums are divided by {m.sampling_rate:g} x {m.nominal_records} = "
        f"{m.sampling_rate * m.nominal_records:g}, a configured constant; no number counted from "
        "private records is released.",
        "The cohort of a round is known to the server and amplifies nothing.",
        "An attempt at a round that was interrupted counts in full.",
        "The figures are for this run alone; runs on the same records add up.",
    )


def not_covered_by(mechanism: Mechanism, *, public_test: bool, secagg: bool) -> tuple[str, ...]:
    """Return what the claim does not speak of, one sentence each."""
    m = mechanism
    lines = []
    if m.claims:
        lines += [
            "Facts about a client or a population as a whole, which the model is meant to learn.",
            "That a client takes part, when, and how long it computes (timing).",
            "A refusal: a client that declines a round tells that its settings or data forbid it.",
            "Choosing settings by looking at results of earlier runs on the same records.",
        ]
        if m.metrics == "clear":
            lines.append(
                "Metrics on the clients' test records: they were released exactly (dp.metrics = "
                '"clear"), with no guarantee for the test records.'
            )
        if m.metrics == "noisy":
            lines.append(
                "Nothing of the noisy metrics: their cost is within the epsilon above, for the "
                "training and the test records alike."
            )
    if public_test:
        lines.append(
            "The test set that accuracy is measured on: it is declared public and has no guarantee."
        )
    lines.append(
        "Secure aggregation: fewer than a third of up to 100 clients collude with the server "
        "(above 100, the configured share), and each client's roster is right. Whoever colludes "
        "with more can tell updates apart; the epsilon holds all the same where one is claimed."
        if secagg
        else "Secure aggregation is not in use: the server can tell the clients' updates apart."
    )
    return tuple(lines)

"""What an audit found: the attacks, the bounds, and whether the claim stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.audit.bounds import epsilon_lower_bound, epsilon_refuted
from fedveil.privacy.audit.guesses import Guesses

__all__ = ["ATTACKS", "Attack", "AuditFacts", "AuditResult", "build_audit"]

AttackName = Literal["own", "difference"]

ATTACKS: Mapping[AttackName, str] = {
    "own": "adds up what the client released along the canary's gradient",
    "difference": "the same, less the mean of what the other clients released there",
}
"""What the attacker looks at. The second sees noise that clients share."""


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AuditFacts(_Value):
    """What was audited.

    Parameters
    ----------
    task, fedveil, created : str
        The task, the version, and when the audit began.
    settings_sha256 : str
        Of the resolved settings as ``config.toml`` holds them. A run with the same one is what
        was audited.
    clients, rounds : int
        Clients that trained, and committed rounds.
    control : str
        The defect that was built in; empty in an audit of the real thing.
    confidence : float
        Of all bounds together.
    delta : float
        Of the claim, and of the bounds.
    releases : tuple of Release
        What is claimed of the client that released most.
    """

    task: str
    fedveil: str
    created: str
    settings_sha256: str
    clients: int
    rounds: int
    control: str
    confidence: float
    delta: float
    releases: tuple[Release, ...]


class Attack(_Value):
    """One attack: its guesses, and what they tell.

    Parameters
    ----------
    name : {"own", "difference"}
        See `ATTACKS`.
    found : Guesses
        How well it guessed.
    epsilon : float
        `epsilon_refuted`: for the claimed mechanism with another amount of noise.
    epsilon_any : float
        `epsilon_lower_bound`: whatever the mechanism is.
    """

    name: AttackName
    found: Guesses
    epsilon: float
    epsilon_any: float


class AuditResult(_Value):
    """An audit, whole; every figure follows from `facts` and the guesses.

    Parameters
    ----------
    claimed : float
        Epsilon of the claim, by the accountant.
    bound, bound_any : float
        The largest `Attack.epsilon` and `Attack.epsilon_any`.
    holds : bool
        Whether the claim stands: neither bound passes it.
    """

    schema_version: Literal[1] = 1
    facts: AuditFacts
    claimed: float
    attacks: tuple[Attack, ...]
    bound: float
    bound_any: float
    holds: bool


def build_audit(facts: AuditFacts, found: Mapping[AttackName, Guesses]) -> AuditResult:
    """Compute the bounds.

    Each of the attacks yields two, and all of them hold together with the confidence wanted
    (Bonferroni).
    """
    each = 1.0 - (1.0 - facts.confidence) / (2 * len(found))
    attacks = tuple(
        Attack(
            name=name,
            found=guesses,
            epsilon=epsilon_refuted(guesses, facts.releases, facts.delta, each),
            epsilon_any=epsilon_lower_bound(guesses, facts.delta, each),
        )
        for name, guesses in found.items()
    )
    claimed = pld_epsilon(facts.releases, facts.delta)
    bound = max(attack.epsilon for attack in attacks)
    bound_any = max(attack.epsilon_any for attack in attacks)
    return AuditResult(
        facts=facts,
        claimed=claimed,
        attacks=attacks,
        bound=bound,
        bound_any=bound_any,
        holds=max(bound, bound_any) <= claimed,
    )

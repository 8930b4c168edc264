"""What a ledger holds: charges, their chain of hashes, and what they come to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NoReturn, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedveil.errors import FedveilError
from fedveil.privacy.accounting import Release, compose, epsilon, rdp_epsilon

__all__ = [
    "Budget",
    "Charge",
    "Entry",
    "LedgerError",
    "OverspendError",
    "Purpose",
    "Spend",
    "chain_start",
    "entry_hash",
    "read_entry",
    "spend",
]

Purpose = Literal["train", "evaluate"]

_LABEL = b"fedveil/ledger/1"


class LedgerError(FedveilError):
    """The ledger cannot be used, so that what was spent is unknown: nothing may be released."""


class OverspendError(LedgerError):
    """A charge that the budget does not bear; it was not written."""


class Charge(BaseModel):
    """What one message is about to release of a data set.

    Parameters
    ----------
    dataset, task, run : str
        Which data set, which task reads it, and for which run.
    round, attempt : int
        As the server says.
    purpose : {"train", "evaluate"}
        What was asked for.
    unit : {"record", "client", "none"}
        Whom the releases protect; ``none`` for an exact release.
    neighbours : {"add-or-remove-one", "none"}
        The neighbouring relation that they are accounted under.
    releases : tuple of Release
        Noisy releases; empty for an exact one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Annotated[str, Field(min_length=1)]
    task: Annotated[str, Field(min_length=1)]
    run: Annotated[str, Field(min_length=1)]
    round: int
    attempt: int
    purpose: Purpose
    unit: Literal["record", "client", "none"]
    neighbours: Literal["add-or-remove-one", "none"]
    releases: tuple[Release, ...]

    @model_validator(mode="after")
    def _accountable_or_exact(self) -> Self:
        exact = (self.unit == "none", self.neighbours == "none", not self.releases)
        if any(exact) and not all(exact):
            raise ValueError("an exact release has no unit, no neighbours and no noise")
        return self

    @property
    def exact(self) -> bool:
        """Whether no noise protects what is released."""
        return self.unit == "none"


class Entry(Charge):
    """A charge in the ledger.

    Parameters
    ----------
    number : int
        From 1 on, without a gap.
    time : datetime.datetime
        When it was written, in UTC to the second; never before the entry ahead of it.
    """

    number: Annotated[int, Field(ge=1)]
    time: AwareDatetime


def chain_start(ledger: str) -> bytes:
    """Return what stands in place of the hash before the first entry of a ledger."""
    return hashlib.sha256(_LABEL + b"/start\0" + ledger.encode()).digest()


def entry_hash(before: bytes, body: str) -> bytes:
    """Return the hash of an entry, which binds all that come before it.

    Parameters
    ----------
    before : bytes
        Hash of the entry ahead, 32 bytes.
    body : str
        The entry, as it is stored.
    """
    return hashlib.sha256(_LABEL + b"/entry\0" + before + body.encode()).digest()


def read_entry(body: str) -> Entry | None:
    """Return the entry that a text holds, or None if it holds none."""
    try:
        return Entry.model_validate_json(body)
    except (ValidationError, FedveilError):
        return None


@dataclass(frozen=True)
class Spend:
    """What was released of one data set, all of it together.

    Parameters
    ----------
    releases : tuple of Release
        Equal ones grouped.
    exact : bool
        Whether something was released without noise: no epsilon holds then.
    units : tuple of str
        Whom the noisy ones protect. Where some protect a record and some the whole client no
        epsilon covers both.
    """

    releases: tuple[Release, ...]
    exact: bool
    units: tuple[str, ...] = ()

    @property
    def accountable(self) -> bool:
        """Whether any epsilon holds for all of it together."""
        return not self.exact and len(self.units) <= 1

    def epsilon(self, delta: float) -> float:
        """Return epsilon; infinite where none holds."""
        return epsilon(self.releases, delta) if self.accountable else math.inf

    def epsilon_rdp(self, delta: float) -> float:
        """Return the same by Rényi differential privacy."""
        return rdp_epsilon(self.releases, delta) if self.accountable else math.inf


def spend(charges: Iterable[Charge], dataset: str, run: str | None = None) -> Spend:
    """Return what was released of a data set, in all runs or in one."""
    of_it = [c for c in charges if c.dataset == dataset and run in (None, c.run)]
    return Spend(
        compose(release for charge in of_it for release in charge.releases),
        any(charge.exact for charge in of_it),
        tuple(sorted({charge.unit for charge in of_it if not charge.exact})),
    )


@dataclass(frozen=True)
class Budget:
    """What may be spent of one data set.

    Parameters
    ----------
    epsilon, delta : float
        Of all runs together.
    epsilon_per_run : float, optional
        Of one run, at the same delta.
    """

    epsilon: float
    delta: float
    epsilon_per_run: float | None = None

    def check(self, before: Sequence[Charge], charge: Charge) -> None:
        """Refuse a charge that would overspend.

        Raises
        ------
        OverspendError
            With the budget, the spend and the cost.
        """
        for limit, run, scope in self._limits(charge.run):
            total = spend([*before, charge], charge.dataset, run).epsilon(self.delta)
            # Not `total > limit`: what is not a number must not pass.
            if not total <= limit:
                self._refuse_mixture(charge.dataset, [*before, charge])
                self._refuse(before, charge.dataset, run, limit, scope, total)

    def check_left(self, before: Sequence[Charge], dataset: str, run: str) -> None:
        """Refuse where nothing is left, whatever is asked for.

        Raises
        ------
        OverspendError
            With the budget and the spend.
        """
        for limit, of_run, scope in self._limits(run):
            spent = spend(before, dataset, of_run).epsilon(self.delta)
            if not spent < limit:
                self._refuse_mixture(dataset, before)
                self._refuse(before, dataset, of_run, limit, scope, spent)

    def _limits(self, run: str) -> list[tuple[float, str | None, str]]:
        limits: list[tuple[float, str | None, str]] = [(self.epsilon, None, "for all runs")]
        if self.epsilon_per_run is not None:
            limits.append((self.epsilon_per_run, run, "for one run"))
        return limits

    def _refuse_mixture(self, dataset: str, charges: Sequence[Charge]) -> None:
        units = spend(charges, dataset).units
        if len(units) > 1:
            raise OverspendError(
                f"data set {dataset}: some releases protect a {units[1]} and some a whole "
                f"{units[0]}, and no epsilon covers both; keep to the modes of one unit, or give "
                "the data set another name in the policy to begin a budget for the other"
            )

    def _refuse(
        self,
        before: Sequence[Charge],
        dataset: str,
        run: str | None,
        limit: float,
        scope: str,
        total: float,
    ) -> NoReturn:
        spent = spend(before, dataset, run)
        if spent.exact:
            raise OverspendError(
                f"data set {dataset}: something was released of it without noise, so that no "
                "budget holds for it any more; give it another name in the policy to begin a "
                "budget for what is released from now on"
            )
        raise OverspendError(
            f"data set {dataset}: the budget {scope} is epsilon {limit:g} at delta "
            f"{self.delta:g}; {_up(spent.epsilon(self.delta))} of it is spent, and this would make "
            f"it {_up(total)}"
        )


def _up(epsilon: float) -> str:
    return f"{math.ceil(epsilon * 1e4) / 1e4:g}" if math.isfinite(epsilon) else "infinite"

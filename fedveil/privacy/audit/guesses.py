"""From the scores of canaries to guesses about the coins that put them in or left them out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedveil.errors import FedveilError

__all__ = ["AuditError", "Guesses", "guess_extremes"]


class AuditError(FedveilError):
    """An audit cannot be made, or what it found makes no sense."""


@dataclass(frozen=True)
class Guesses:
    """How well an attacker guessed the coins of the canaries.

    Parameters
    ----------
    canaries : int
        Fair coins thrown, >= 1.
    guesses : int
        Coins that the attacker guessed; it abstains from the others.
    correct : int
        Guesses that were right.

    Raises
    ------
    AuditError
        Unless 0 <= correct <= guesses <= canaries.
    """

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        if self.canaries < 1 or not 0 <= self.correct <= self.guesses <= self.canaries:
            raise AuditError(
                f"{self.correct} correct of {self.guesses} guesses about {self.canaries} canaries "
                "cannot be"
            )


def guess_extremes(
    scores: NDArray[np.float64], included: NDArray[np.bool_], guesses: int
) -> Guesses:
    """Guess that the highest scores were included and the lowest were not.

    Parameters
    ----------
    scores : ndarray
        Shape (m,), one score a canary; higher where the attacker sees more of it.
    included : ndarray of bool
        Shape (m,), the coins. They are looked at after guessing.
    guesses : int
        How many to guess, in [0, m]; an odd one more at the top.

    Raises
    ------
    AuditError
        If the shapes differ, a score is NaN, or there are not as many canaries.
    """
    if scores.shape != included.shape or scores.ndim != 1:
        raise AuditError(f"{scores.shape} scores do not match {included.shape} coins")
    if np.isnan(scores).any():
        raise AuditError("a score of the audit is NaN")
    order = np.argsort(scores, kind="stable")
    low = guesses // 2
    high = guesses - low
    correct = int((~included[order[:low]]).sum()) + int(included[order[len(order) - high :]].sum())
    return Guesses(len(scores), guesses, correct)

"""Which rounds of a store are kept when old ones are removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedveil.vault.errors import StoreError
from fedveil.vault.header import MetaValue

__all__ = ["KeepBest", "rounds_to_remove"]


@dataclass(frozen=True)
class KeepBest:
    """The best rounds by a metric.

    Parameters
    ----------
    metric : str
        Name of a number in the `meta` of the rounds.
    count : int
        How many rounds, at least 1.
    higher_is_better : bool
        Whether the best round has the highest number, or the lowest.

    Raises
    ------
    StoreError
        If the count is less than 1.
    """

    metric: str
    count: int
    higher_is_better: bool

    def __post_init__(self) -> None:
        if self.count < 1:
            raise StoreError(f"{self.count} best rounds cannot be kept; keep 1 or more")


def rounds_to_remove(
    metas: Mapping[int, Mapping[str, MetaValue]], keep_last: int, keep_best: KeepBest | None
) -> list[int]:
    """Return the rounds that are neither among the newest nor among the best, oldest first.

    Parameters
    ----------
    metas : Mapping[int, Mapping[str, MetaValue]]
        For every round what its header says in `meta`.
    keep_last : int
        How many of the newest rounds are kept, at least 1.
    keep_best : KeepBest or None
        Which rounds are kept beside them. Of rounds with equal numbers the newer is the better.

    Raises
    ------
    StoreError
        If no newest round would be kept, or no round has the metric.
    """
    if keep_last < 1:
        raise StoreError(f"{keep_last} newest rounds cannot be kept; the newest always stays")
    saved = sorted(metas)
    kept = set(saved[-keep_last:])
    if keep_best is not None and saved:
        kept.update(_best(metas, saved, keep_best))
    return [number for number in saved if number not in kept]


def _best(
    metas: Mapping[int, Mapping[str, MetaValue]], saved: Sequence[int], keep_best: KeepBest
) -> list[int]:
    sign = 1 if keep_best.higher_is_better else -1
    scores: list[tuple[float, int]] = []
    for number in saved:
        value = metas[number].get(keep_best.metric)
        if isinstance(value, int | float) and not isinstance(value, bool):
            scores.append((sign * value, number))
    if not scores:
        raise StoreError(
            f"none of the {len(saved)} rounds has a number {keep_best.metric!r:.80} in its meta; "
            "nothing was removed"
        )
    return [number for _, number in sorted(scores)[-keep_best.count :]]

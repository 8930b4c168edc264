"""Sizes that batches are padded to, so that a compiled model never meets a new shape."""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["bucket", "ladder"]


def ladder(most: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and `most`, so that a batch is padded to less than twice its rows.

    Parameters
    ----------
    most : int
        Rows of the largest batch, at least 1.
    """
    return (*(1 << power for power in range((most - 1).bit_length())), most)


def bucket(sizes: tuple[int, ...], rows: int) -> int:
    """Return the smallest of the sizes that holds some rows, no more than the last one has."""
    return sizes[bisect_left(sizes, rows)]

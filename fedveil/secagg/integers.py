"""Vectors of integers as words of the ring and back: as they are, modulo the ring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedveil.secagg.encoding import DecodedSum, Encoding
from fedveil.secagg.errors import EncodingError

__all__ = ["decode_integers", "encode_integers"]


def encode_integers(
    encoding: Encoding,
    values: NDArray[np.int64],
    figures: Mapping[str, float],
    vector: NDArray[np.unsignedinteger],
    tail: NDArray[np.uint64],
) -> None:
    """Write integers modulo 2^`ring_bits`, neither scaled nor clipped, and figures.

    Whoever hands them in has bounded them; nothing is said of whether that changed them, so that
    the sum tells nothing beside itself. Every client weighs 1.

    Parameters
    ----------
    encoding : Encoding
        Of the session.
    values : ndarray
        Shape (`dimension`,), int64.
    figures : Mapping of str to float
        As `Encoding.encode` takes them.
    vector, tail : ndarray
        As `Encoding.empty` gives them; overwritten.

    Raises
    ------
    EncodingError
        If they are no int64, or not as many as the session is for, or a figure is out of bounds.
    """
    if values.dtype != np.int64 or values.shape != (encoding.dimension,):
        raise EncodingError(
            f"the integers are {values.dtype} {values.shape}, the session is for int64 "
            f"({encoding.dimension},)"
        )
    # From a wider integer to a narrower one, the cast is the remainder.
    np.copyto(vector, values, casting="unsafe")
    encoding.write_tail(tail, weight=1.0, is_clipped=False, figures=figures)


def decode_integers(
    encoding: Encoding,
    vector: NDArray[np.unsignedinteger],
    tail: NDArray[np.uint64],
    clients: int,
    names: Sequence[str],
) -> DecodedSum:
    """Return what an unmasked sum of integers says, in -2^(ring_bits - 1) .. 2^(ring_bits - 1) - 1.

    Raises
    ------
    ImpossibleSumError
        If honest clients cannot have produced it.
    """
    summed = encoding.read_tail(tail, clients, names)
    signed = vector.view(np.dtype(f"<i{vector.itemsize}"))
    return DecodedSum(
        mean=(),
        weight=summed.weight,
        clients=clients,
        clipped=summed.clipped,
        figures=summed.figures,
        integers=signed.astype(np.int64),
    )

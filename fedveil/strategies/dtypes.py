"""An aggregate in the types of the model: Flower's strategies widen them."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord

__all__ = ["cast_like"]


def cast_like(aggregate: ArrayRecord, model: ArrayRecord) -> ArrayRecord:
    """Return the aggregate with the names' order, dtypes and shapes of `model`.

    Integers are rounded. Values must be finite.
    """
    arrays = {}
    for name, old in model.items():
        values = aggregate[name].numpy()
        dtype = np.dtype(old.dtype)
        if dtype.kind in "iu":
            values = np.rint(values)
        arrays[name] = Array(np.ascontiguousarray(values, dtype=dtype).reshape(old.shape))
    return ArrayRecord(arrays)

"""The task `breast-cancer`: benign or malignant, from data that come with scikit-learn."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from fedveil.tasks.base import ModelInputs
from fedveil.tasks.forms import FieldsForm, NumberField
from fedveil.tasks.models import linear
from fedveil.tasks.objectives import BinaryTask
from fedveil.tasks.pooled import Pool, PooledTask, fixed_hold_out

__all__ = ["BreastCancer"]

# Least and greatest value of each of the ten measures of a cell nucleus, as printed under
# "Summary Statistics" in the published description (scikit-learn, breast_cancer.rst): public,
# rounded, and never computed from the records at hand.
_MEAN = (
    (6.981, 28.11),  # radius
    (9.71, 39.28),  # texture
    (43.79, 188.5),  # perimeter
    (143.5, 2501.0),  # area
    (0.053, 0.163),  # smoothness
    (0.019, 0.345),  # compactness
    (0.0, 0.427),  # concavity
    (0.0, 0.201),  # concave points
    (0.106, 0.304),  # symmetry
    (0.05, 0.097),  # fractal dimension
)
_STANDARD_ERROR = (
    (0.112, 2.873),
    (0.36, 4.885),
    (0.757, 21.98),
    (6.802, 542.2),
    (0.002, 0.031),
    (0.002, 0.135),
    (0.0, 0.396),
    (0.0, 0.053),
    (0.008, 0.079),
    (0.001, 0.03),
)
_WORST = (
    (7.93, 36.04),
    (12.02, 49.54),
    (50.41, 251.2),
    (185.2, 4254.0),
    (0.071, 0.223),
    (0.027, 1.058),
    (0.0, 1.252),
    (0.0, 0.291),
    (0.156, 0.664),
    (0.055, 0.208),
)
_MEASURES = (
    *("radius", "texture", "perimeter", "area", "smoothness"),
    *("compactness", "concavity", "concave points", "symmetry", "fractal dimension"),
)
_LOW, _HIGH = np.array(_MEAN + _STANDARD_ERROR + _WORST).T


class BreastCancer(BinaryTask, PooledTask):
    """569 biopsies with 30 measures each (Street, Wolberg & Mangasarian 1993, UCI data set 17).

    114 records, stratified, are the public test set; clients share the other 455. Inputs are
    float32, shape (n, 30), the published range of each measure mapped to [-1, 1]. The target
    is 1 for benign, as in scikit-learn. The model is linear.
    """

    name: ClassVar[str] = "breast-cancer"
    nominal_records: ClassVar[int] = 455
    class_names: ClassVar[tuple[str, ...]] = ("malignant", "benign")

    def model(self) -> nn.Module:
        """Return a logistic regression."""
        return linear(30, 1)

    def model_inputs(self) -> ModelInputs:
        """Return the inputs that the class describes."""
        return ModelInputs((30,))

    def form(self) -> FieldsForm:
        """Return the thirty measures, in their published ranges."""
        names = [f"{kind} {m}" for kind in ("mean", "error of", "worst") for m in _MEASURES]
        fields = tuple(
            NumberField(
                name=name,
                low=low,
                high=high,
                typical=round((low + high) / 2, 3),
                offset=(low + high) / 2,
                scale=(high - low) / 2,
            )
            for name, low, high in zip(names, _LOW.tolist(), _HIGH.tolist(), strict=True)
        )
        return FieldsForm(fields=fields)

    def read_pool(self) -> Pool:
        """Read the records from scikit-learn."""
        measures, labels = load_breast_cancer(return_X_y=True)
        return fixed_hold_out(measures, labels)

    def inputs(self, x: NDArray[np.generic]) -> Tensor:
        """Return scaled measures."""
        scaled = 2 * (x.astype(np.float64) - _LOW) / (_HIGH - _LOW) - 1
        return torch.from_numpy(scaled.astype(np.float32))

    def targets(self, labels: NDArray[np.int64]) -> Tensor:
        """Return 1 for benign, 0 for malignant."""
        return torch.from_numpy(labels.astype(np.float32))

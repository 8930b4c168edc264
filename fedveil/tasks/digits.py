"""The task `digits`: 8x8 handwritten digits that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fedveil.tasks.base import ModelInputs
from fedveil.tasks.forms import ImageForm
from fedveil.tasks.models import linear, tanh_mlp
from fedveil.tasks.objectives import MultiClassTask
from fedveil.tasks.options import Choice, Option
from fedveil.tasks.pooled import CLIENT_TEST_FRACTION, Pool, PooledTask, fixed_hold_out

__all__ = ["Digits"]

_MIDDLE = 5 / 16
"""About how dark a pixel is, from 0 to 1, whatever the digit: chosen once, counted from nobody.

Pixels are sixteenths, so that taking it off them rounds nothing.
"""


class Digits(MultiClassTask, PooledTask):
    """Ten classes of 1,797 images of 64 pixels (Alpaydin & Kaynak 1998, UCI data set 80).

    360 images, stratified, are the public test set; clients share the other 1,437. Inputs are
    float32, shape (n, 64), in [0, 1]: pixels have the public range 0 to 16. Option ``model``:
    ``linear`` (64-10) or ``mlp`` (64-32-10, tanh).
    """

    name: ClassVar[str] = "digits"
    nominal_records: ClassVar[int] = 1437
    known_options: ClassVar[Mapping[str, Option]] = {
        **CLIENT_TEST_FRACTION,
        "model": Choice("linear", ("linear", "mlp")),
    }

    def model(self) -> nn.Module:
        """Return the model that the option names."""
        if self.options["model"] == "linear":
            return linear(64, 10, _MIDDLE)
        return tanh_mlp((64, 32, 10), _MIDDLE)

    def model_inputs(self) -> ModelInputs:
        """Return the inputs that the class describes."""
        return ModelInputs((64,))

    def form(self) -> ImageForm:
        """Return the image; a digit fills it."""
        return ImageForm(height=8, width=8)

    def read_pool(self) -> Pool:
        """Read the images from scikit-learn."""
        pixels, labels = load_digits(return_X_y=True)
        return fixed_hold_out(pixels, labels)

    def inputs(self, x: NDArray[np.generic]) -> Tensor:
        """Return pixels in [0, 1]."""
        return torch.from_numpy(x.astype(np.float32) / 16)

    def targets(self, labels: NDArray[np.int64]) -> Tensor:
        """Return the digits."""
        return torch.from_numpy(labels)

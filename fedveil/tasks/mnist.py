"""The tasks `mnist` and `fashion-mnist`: 28x28 images in ten classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedveil.tasks.base import ModelInputs
from fedveil.tasks.forms import ImageForm
from fedveil.tasks.models import linear, small_cnn, tanh_mlp
from fedveil.tasks.objectives import MultiClassTask
from fedveil.tasks.options import Choice, Option
from fedveil.tasks.pooled import CLIENT_TEST_FRACTION, Pool, PooledTask

__all__ = ["FashionMnist", "Mnist"]


class _Images(MultiClassTask, PooledTask):
    """60,000 training and 10,000 public test images, float32 of shape (n, 1, 28, 28) in [0, 1].

    Option ``model``: ``linear`` (784-10), ``mlp`` (784-256-128-10, tanh) or ``cnn``
    (`fedveil.tasks.models.small_cnn`).
    """

    nominal_records: ClassVar[int] = 60_000
    known_options: ClassVar[Mapping[str, Option]] = {
        **CLIENT_TEST_FRACTION,
        "model": Choice("cnn", ("linear", "mlp", "cnn")),
    }
    archive: ClassVar[str]
    margin: ClassVar[int] = 0

    def model(self) -> nn.Module:
        """Return the model that the option names."""
        match self.options["model"]:
            case "linear":
                return linear(784, 10)
            case "mlp":
                return tanh_mlp((784, 256, 128, 10))
            case _:
                return small_cnn()

    def model_inputs(self) -> ModelInputs:
        """Return the inputs that the class describes."""
        return ModelInputs((1, 28, 28))

    def form(self) -> ImageForm:
        """Return the image."""
        return ImageForm(height=28, width=28, margin=self.margin)

    def read_pool(self) -> Pool:
        """Read the images from the archive."""
        arrays = self.files.read_arrays(self.archive)
        return Pool(
            x=arrays["x_train"],
            labels=arrays["y_train"].astype(np.int64),
            test_x=arrays["x_test"],
            test_labels=arrays["y_test"].astype(np.int64),
            groups=self.read_groups(),
        )

    def read_groups(self) -> NDArray[np.int64] | None:
        """Return the natural group of each training image, or None."""
        return None

    def inputs(self, x: NDArray[np.generic]) -> Tensor:
        """Return pixels in [0, 1], with a channel axis."""
        return torch.from_numpy(x.astype(np.float32) / 255).unsqueeze(1)

    def targets(self, labels: NDArray[np.int64]) -> Tensor:
        """Return the classes."""
        return torch.from_numpy(labels)


class Mnist(_Images):
    """Handwritten digits (LeCun et al. 1998), "natural" by writer.

    The 539 writers of the training images were traced by Yadav & Bottou 2019, "Cold case: the
    lost MNIST digits"; the file that names them is read only for the scheme "natural".
    """

    name: ClassVar[str] = "mnist"
    archive: ClassVar[str] = "mnist.npz"
    margin: ClassVar[int] = 4  # digits were fitted into 20x20 pixels (LeCun et al. 1998)
    writers: ClassVar[str] = "mnist_writers.npz"
    data_files: ClassVar[Mapping[str, str]] = {
        archive: "8fc8fc4f0343f34ece1fcfdfb65f0801fac48030ce7c70e62bbb62f64ee2e65b",
        writers: "0c39e504ba29bb0dc3912e9684989b5746b4b7e655895fe303005bd8e7c72e2c",
    }
    data_source: ClassVar[str] = (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz (images and"
        " labels) or github.com/facebookresearch/qmnist (NIST writer and hsf columns of"
        " qmnist-*-labels, as int16 writer_train, writer_test and uint8 hsf_train, hsf_test)"
    )
    natural_groups: ClassVar[str | None] = "writer"

    def read_groups(self) -> NDArray[np.int64] | None:
        """Return the writer of each training image under the scheme "natural", else None."""
        if self.partition.scheme != "natural":
            return None
        return self.files.read_arrays(self.writers)["writer_train"].astype(np.int64)


class FashionMnist(_Images):
    """Articles of clothing (Xiao, Rasul & Vollgraf 2017)."""

    name: ClassVar[str] = "fashion-mnist"
    archive: ClassVar[str] = "fashion_mnist.npz"
    class_names: ClassVar[tuple[str, ...]] = (
        *("T-shirt or top", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    )
    data_files: ClassVar[Mapping[str, str]] = {
        archive: "37e5852d33933792bfddacf387e185c9c3d87fa20c45417517512181f092a44a"
    }
    data_source: ClassVar[str] = (
        "github.com/zalandoresearch/fashion-mnist (folder data/fashion, saved with numpy.savez as"
        " uint8 x_train, y_train, x_test, y_test)"
    )

"""The small models of the built-in tasks; Opacus takes each of them as it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

__all__ = ["CharacterCnn", "linear", "small_cnn", "tanh_mlp"]


class _CentredFlatten(nn.Flatten):
    """Flattens each record, and takes a public constant off every value.

    Where all values of a record are far from zero, what they have in common fills its gradient,
    and clipping leaves little of what tells records apart. The constant is no buffer: it is not
    trained, stored or sent, and layers keep the names they have without it.
    """

    def __init__(self, middle: float) -> None:
        super().__init__()
        self._middle = middle

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Flatten names it so
        """Return shape (n, values)."""
        flat: Tensor = super().forward(input)
        return flat - self._middle

    def extra_repr(self) -> str:
        """Return what is taken off, for people."""
        return f"middle={self._middle:g}"


def linear(features: int, outputs: int, middle: float = 0.0) -> nn.Module:
    """Return a linear model: inputs of shape (n, ...), `features` values a record.

    Parameters
    ----------
    features, outputs : int
        Values a record, and results.
    middle : float
        A public constant near the mean of the values, which is taken off each of them.
    """
    return nn.Sequential(_flatten(middle), nn.Linear(features, outputs))


def tanh_mlp(widths: Sequence[int], middle: float = 0.0) -> nn.Module:
    """Return a perceptron of these widths, input and output among them.

    tanh bounds activations, and with them gradients, which clipping then cuts less (Papernot
    et al. 2021, "Tempered sigmoid activations for deep learning with differential privacy").

    Parameters
    ----------
    widths : sequence of int
        For example (784, 256, 128, 10).
    middle : float
        As of `linear`.
    """
    layers: list[nn.Module] = [_flatten(middle)]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _flatten(middle: float) -> nn.Module:
    return _CentredFlatten(middle) if middle else nn.Flatten()


def small_cnn() -> nn.Module:
    """Return the tanh network for 28x28 images of Papernot et al. 2021.

    Inputs have shape (n, 1, 28, 28), outputs (n, 10); 26,010 parameters. Tramer & Boneh 2021,
    "Differentially private learning needs better features (or much more data)", take it as
    their end-to-end network for MNIST and Fashion-MNIST.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=8, stride=2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(kernel_size=2, stride=1),
        nn.Conv2d(16, 32, kernel_size=4, stride=2),
        nn.Tanh(),
        nn.MaxPool2d(kernel_size=2, stride=1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


class CharacterCnn(nn.Module):
    """A convolutional model of the next character, with no recurrence to unroll.

    Two layers, each over pieces of four that touch and do not overlap, so that every character
    of the window counts, the last ones too.

    Parameters
    ----------
    vocabulary : int
        Number of characters, also the number of outputs.
    window : int
        Number of characters in an input, a multiple of 16; inputs are int64, (n, window).
    """

    def __init__(self, vocabulary: int, window: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 16)
        self.features = nn.Sequential(
            nn.Conv1d(16, 64, kernel_size=4, stride=4),
            nn.Tanh(),
            nn.Conv1d(64, 64, kernel_size=4, stride=4),
            nn.Tanh(),
            nn.Flatten(),
        )
        self.output = nn.Linear(64 * (window // 16), vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        """Return logits of shape (n, vocabulary)."""
        logits: Tensor = self.output(self.features(self.embedding(characters).transpose(1, 2)))
        return logits

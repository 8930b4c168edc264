"""Models to differentiate, of every kind of layer, and sums of clipped gradients of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional as f

from fedveil.client.gradients.engine import gradient_engine
from fedveil.client.gradients.interface import EngineName, Precision
from fedveil.client.probing import Probe
from fedveil.tasks.models import CharacterCnn, linear, small_cnn, tanh_mlp

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Case:
    """A model with records for it."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Loss = f.cross_entropy

    def double(self) -> Case:
        inputs = self.inputs.double() if self.inputs.is_floating_point() else self.inputs
        targets = self.targets.double() if self.targets.is_floating_point() else self.targets
        return Case(copy.deepcopy(self.model).double(), inputs, targets, self.loss)

    def only(self, kept: Tensor) -> Case:
        return Case(self.model, self.inputs[kept], self.targets[kept], self.loss)


def images(model: nn.Module, shape: tuple[int, ...], records: int) -> Case:
    return Case(model, torch.rand(records, *shape), torch.randint(0, 10, (records,)))


def rows(model: nn.Module, width: int, records: int) -> Case:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return f.binary_cross_entropy_with_logits(outputs.reshape(targets.shape), targets)

    return Case(model, torch.randn(records, width), torch.randint(0, 2, (records,)).float(), loss)


def built_in(records: int) -> dict[str, Callable[[], Case]]:
    """Return the models of the built-in tasks, by task, each with so many made-up records."""
    return {
        "digits": lambda: images(tanh_mlp((64, 32, 10), 5 / 16), (1, 8, 8), records),
        "breast-cancer": lambda: rows(linear(30, 1), 30, records),
        "heart-disease": lambda: rows(nn.Linear(13, 1), 13, records),
        "mnist, mlp": lambda: images(tanh_mlp((784, 256, 128, 10)), (1, 28, 28), records),
        "mnist, cnn": lambda: images(small_cnn(), (1, 28, 28), records),
        "adult": lambda: rows(tanh_mlp((105, 32, 1)), 105, records),
        "shakespeare": lambda: Case(
            CharacterCnn(82, 80),
            torch.randint(0, 82, (records, 80)),
            torch.randint(0, 82, (records,)),
        ),
    }


class Model(nn.Module):
    """A body, its outputs flattened, and a head of three classes."""

    def __init__(self, body: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.body = body
        with torch.no_grad():
            self.head = nn.Linear(body(example).flatten(1).shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).flatten(1))
        return logits


class Transposed(nn.Module):
    """Swap channels and positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Scaled(nn.Module):
    """A layer that only Opacus' functorch mode can differentiate, with one inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width))
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.inner(x) * self.scale)


def crafted(size: float) -> nn.Module:
    """Return a model whose first layer cancels out but for rounding, which the second blows up."""
    model = tanh_mlp((784, 256, 128, 10))
    first, second = model[1], model[3]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    with torch.no_grad():
        parts = torch.randint(-1000, 1001, (170, 784)).float() * 2.0**-27
        first.weight.zero_()
        first.weight[:170] = parts
        first.weight[170:255] = -(parts[:85] + parts[85:])
        second.weight.zero_()
        for unit in range(128):
            at = unit % 85
            second.weight[unit, [at, 85 + at, 170 + at]] = size
        first.bias.zero_()
        second.bias.zero_()
    return model


def clipped(
    engine: EngineName,
    case: Case,
    clip: float,
    pieces: int | None = None,
    probe: Probe | None = None,
    precision: Precision = "fp32",
) -> list[Tensor]:
    """Return the sum of clipped gradients by an engine, in pieces of that many records."""
    model = copy.deepcopy(case.model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(trained, clip)
    with gradient_engine(engine, model, case.loss, optimizer, probe, precision) as engine_:
        for records in np.split(
            np.arange(len(case.inputs)),
            range(pieces or len(case.inputs), len(case.inputs), pieces or len(case.inputs)),
        ):
            index = torch.from_numpy(records)
            engine_.add(case.inputs[index], case.targets[index], records)
    return [p.summed_grad.detach() for p in trained]  # type: ignore[attr-defined]


def optimizer_of(trained: list[nn.Parameter], clip: float) -> DPOptimizer:
    from fedveil.client.dp_training import SecureDPOptimizer
    from fedveil.privacy.randomness import SecureGenerator

    return SecureDPOptimizer(
        torch.optim.SGD(trained, lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=1.0,
        noise=SecureGenerator(),
    )


def one_at_a_time(case: Case, clip: float) -> tuple[list[Tensor], list[float]]:
    """Return the sum and each norm, from one backward pass a record in double precision."""
    case = case.double()
    trained = [p for p in case.model.parameters() if p.requires_grad]
    total, norms = [torch.zeros_like(p) for p in trained], []
    for x, y in zip(case.inputs, case.targets, strict=True):
        loss = case.loss(case.model(x[None]), y[None])
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        gradient = [
            torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)
        ]
        norms.append(size(gradient))
        for t, g in zip(total, gradient, strict=True):
            t += g * min(1.0, clip / (norms[-1] + 1e-6))
    return total, norms


def size(tensors: list[Tensor]) -> float:
    """Return the L2 norm over all of them."""
    return math.sqrt(sum(float((t.double() ** 2).sum()) for t in tensors))


def apart(ones: list[Tensor], others: list[Tensor]) -> float:
    """Return the L2 distance."""
    return size([a.double() - b.double() for a, b in zip(ones, others, strict=True)])


@st.composite
def vectors(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Draw a perceptron on vectors or on sequences of them."""
    width = draw(st.integers(1, 9))
    axes = draw(st.lists(st.integers(1, 4), max_size=2))
    layers: list[nn.Module] = []
    inside = width
    for _ in range(draw(st.integers(1, 3))):
        out = draw(st.integers(1, 12))
        layers += [nn.Linear(inside, out, bias=draw(st.booleans()))]
        layers += draw(st.sampled_from([[], [nn.LayerNorm(out)], [Scaled(out)]]))
        layers += [draw(st.sampled_from([nn.Tanh(), nn.ReLU(), nn.GELU()]))]
        inside = out
    return nn.Sequential(*layers), torch.randn(6, *axes, width)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Draw a convolutional network in one or two dimensions."""
    axes = draw(st.sampled_from([1, 2]))
    groups = draw(st.integers(1, 3))
    channels = groups * draw(st.integers(1, 3))
    sides = [draw(st.integers(6, 9)) for _ in range(axes)]
    inputs = torch.randn(6, channels, *sides)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 2))):
        out = groups * draw(st.integers(1, 4))
        shape = st.tuples(*[st.integers(1, 3)] * axes)
        padding: str | tuple[int, ...] = draw(
            st.one_of(st.sampled_from(["same", "valid"]), st.tuples(*[st.integers(0, 2)] * axes))
        )
        stride = (1,) * axes if padding == "same" else draw(st.tuples(*[st.integers(1, 2)] * axes))
        kind = nn.Conv1d if axes == 1 else nn.Conv2d
        layers += [
            kind(
                channels,
                out,
                draw(shape),  # type: ignore[arg-type]
                stride=stride,  # type: ignore[arg-type]
                padding=padding,  # type: ignore[arg-type]
                dilation=draw(st.integers(1, 2)),
                groups=groups,
                bias=draw(st.booleans()),
            )
        ]
        layers += draw(st.sampled_from([[], [nn.GroupNorm(groups, out)]]))
        layers += [nn.Tanh()]
        channels = out
        if any(side < 5 for side in nn.Sequential(*layers)(inputs).shape[2:]):
            break
    return nn.Sequential(*layers), inputs


@st.composite
def texts(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Draw a network on tokens, which repeat."""
    vocabulary, width = draw(st.integers(2, 12)), draw(st.integers(1, 6))
    layers: list[nn.Module] = [nn.Embedding(vocabulary, width)]
    layers += draw(
        st.sampled_from(
            [[], [Transposed(), nn.Conv1d(width, 4, 2), nn.Tanh()], [nn.LayerNorm(width)]]
        )
    )
    return nn.Sequential(*layers), torch.randint(0, vocabulary, (6, draw(st.integers(2, 8))))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a model of any kind, some of its parameters frozen, and six records."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    body, inputs = draw(st.one_of(vectors(), convolutions(), texts()))
    model = Model(body, inputs)
    for p in list(model.body.parameters()):
        p.requires_grad = draw(st.integers(0, 4)) > 0
    if inputs.is_floating_point():
        inputs = inputs * draw(st.sampled_from([0.01, 1.0, 100.0]))
    return Case(model, inputs, torch.randint(0, 3, (6,)))

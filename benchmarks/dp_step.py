"""A step of DP-SGD beside one of plain SGD and one with Opacus' hooks, and where its time goes.

The perceptron 784-256-128-10 and the small convolutional network of the inference benchmark, 256
records in a batch. Each side takes a whole optimiser step on the same records: forward, backward,
clipping, noise, update. The baselines are PyTorch's own step, and Opacus 1.6's step as a user of
its `GradSampleModule` and `DPOptimizer` writes it, whose noise comes from PyTorch's ordinary
generator. Ours is what a client runs, with noise from AES-256-CTR; what the noise costs is shown
beside it, since it depends on the parameters alone and not on how gradients are clipped.

Every side computes 256 rows. Training fills each pass up with blank rows to a public number, 288
where 256 records are expected (`fedveil.client.gradients.blanks.physical_rows`): an eighth more of
forward, backward and sums, and no more of noise and update, which these figures leave out.

Steps are interleaved, and their times are CPU times of the whole process on one thread, which other
work on the machine disturbs least; figures are medians, and a ratio is the median of the ratios of
one turn.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch
from claims import Claim, finish, parser
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedveil.client.dp_training import SecureDPOptimizer
from fedveil.client.gradients.engine import gradient_engine
from fedveil.privacy.randomness import SecureGenerator
from fedveil.tasks.models import small_cnn, tanh_mlp

RECORDS, TURNS, WARM_UP, STEPS = 256, 7, 2, 3
CLIP_NORM, NOISE_MULTIPLIER = 1.0, 1.0
MODELS: dict[str, Callable[[], nn.Module]] = {
    "MLP 784-256-128-10": lambda: tanh_mlp((784, 256, 128, 10)),
    "small CNN": small_cnn,
}
PLAIN, OURS, SUMS, NOISE = "plain SGD", "DP-SGD", "clipped sums alone", "noise alone"
HOOKS = "Opacus' hooks"

Step = Callable[[], None]


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Return a step of plain SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def hooks(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Return a step of Opacus as its users write it."""
    wrapped = GradSampleModule(model, loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=RECORDS,
    )

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(wrapped(x), y).backward()
        optimizer.step()

    return step


def ours(model: nn.Module, x: Tensor, y: Tensor, stack: ExitStack) -> dict[str, Step]:
    """Return a step as a client takes it, and two parts of it."""
    optimizer = SecureDPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=RECORDS,
        noise=SecureGenerator(),
    )
    engine = stack.enter_context(gradient_engine("auto", model, cross_entropy, optimizer))
    records = np.arange(RECORDS)

    def sums() -> None:
        optimizer.zero_grad(set_to_none=True)
        engine.add(x, y, records)

    def step() -> None:
        sums()
        optimizer.add_noise()
        optimizer.scale_grad()
        optimizer.original_optimizer.step()

    return {OURS: step, SUMS: sums, NOISE: optimizer.add_noise}


def measure(make: Callable[[], nn.Module]) -> dict[str, list[float]]:
    """Return CPU milliseconds of a step, of every side in every turn."""
    torch.manual_seed(0)
    x = torch.rand(RECORDS, 1, 28, 28)
    y = torch.randint(0, 10, (RECORDS,))
    with ExitStack() as stack:
        sides = {
            PLAIN: plain(make(), x, y),
            **ours(make(), x, y, stack),
            HOOKS: hooks(make(), x, y),
        }
        found: dict[str, list[float]] = defaultdict(list)
        for turn in range(WARM_UP + TURNS):
            for side, step in sides.items():
                began = time.process_time()
                for _ in range(STEPS):
                    step()
                if turn >= WARM_UP:
                    found[side].append(1e3 * (time.process_time() - began) / STEPS)
    return found


def ratio(found: dict[str, list[float]], above: str, below: str) -> float:
    """Return the median of the ratios of one turn."""
    return statistics.median(a / b for a, b in zip(found[above], found[below], strict=True))


def show(results: dict[str, dict[str, list[float]]]) -> None:
    """Print all times."""
    table = Table(title=f"CPU milliseconds a step, {RECORDS} records, one thread")
    for name in ("", *results):
        table.add_column(name, justify="right" if name else "left")
    for side in (PLAIN, OURS, SUMS, NOISE, HOOKS):
        cells = [
            f"{statistics.median(f[side]):.2f} ({ratio(f, side, PLAIN):.2f}x)"
            for f in results.values()
        ]
        table.add_row(side, *cells)
    Console(width=140).print(table)


def main() -> None:
    """Measure, print, and exit with 1 when a claim does not hold."""
    arguments = parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    results = {name: measure(make) for name, make in MODELS.items()}
    claims = [
        Claim(
            f"DP-SGD step, noise and all, against plain SGD, {name}",
            ratio(found, OURS, PLAIN),
            "x",
            2.0,
            "at most",
        )
        for name, found in results.items()
    ]
    mlp = next(iter(results))
    claims.append(
        Claim(
            f"Opacus' hooks against our step, {mlp}",
            ratio(results[mlp], HOOKS, OURS),
            "x",
            5.0,
            "at least",
        )
    )
    if not arguments.json:
        show(results)
    finish(claims, as_json=arguments.json)


if __name__ == "__main__":
    main()

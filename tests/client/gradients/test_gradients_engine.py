"""Which engine a model gets, what an engine refuses, and what it leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from gradient_models import Case, Model, Scaled, apart, clipped, optimizer_of
from numpy.typing import NDArray
from tiny_task import TinyTask
from torch import Tensor, nn
from torch.nn import functional as f

from fedveil.client.dp_training import train_private
from fedveil.client.gradients.engine import chosen, gradient_engine
from fedveil.client.gradients.interface import EngineName
from fedveil.client.gradients.layers import trained_layers
from fedveil.client.local_training import TrainingError
from fedveil.client.probing import probing
from fedveil.config import DpConfig, TrainingConfig, parse_config
from fedveil.privacy.randomness import SecureGenerator
from fedveil.settings import ConfigError
from fedveil.tasks.base import Examples
from fedveil.tasks.digits import Digits
from fedveil.tasks.models import small_cnn
from fedveil.tasks.partition import PartitionSpec

ENGINES: tuple[EngineName, ...] = ("fast", "opacus")


def vectors(model: nn.Module) -> Case:
    return Case(model, torch.randn(8, 5), torch.randint(0, 3, (8,)))


def test_the_fast_engine_is_taken_unless_it_cannot() -> None:
    assert chosen("auto", small_cnn()) == "fast"
    assert chosen("opacus", small_cnn()) == "opacus"
    for option in ("linear", "mlp"):
        # Its first module, which takes a constant off, has no weights to differentiate.
        model = Digits(seed=0, partition=PartitionSpec("iid"), options={"model": option}).model()
        assert chosen("auto", model) == "fast"
        assert {type(layer) for layer in trained_layers(model).values()} == {nn.Linear}
    assert chosen("auto", nn.Sequential(nn.EmbeddingBag(4, 3), nn.Linear(3, 3))) == "opacus"


def test_an_engine_that_does_not_exist_is_refused_by_name() -> None:
    tree = {
        "task": {"name": "digits"},
        "training": {"engine": "quick"},
        "dp": {"noise_multiplier": 1.0},
    }
    with pytest.raises(ConfigError, match=r"training\.engine: .*'quick'"):
        parse_config(tree, "test")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_embedding_that_rescales_itself_is_refused(engine: EngineName) -> None:
    # The rows that the records use would change without any noise.
    model = Model(nn.Embedding(7, 4, max_norm=1.0), torch.zeros(1, 6, dtype=torch.int64))
    case = Case(model, torch.randint(0, 7, (8, 6)), torch.randint(0, 3, (8,)))
    with pytest.raises(TrainingError, match=r"layer body: max_norm = 1 rescales"):
        clipped(engine, case, 1.0)


def test_layers_that_do_not_keep_records_apart_are_refused() -> None:
    class Positions(nn.Module):
        """Adds an embedding of the position, whose rows are no records."""

        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head((x[:, :, None] + self.position(torch.arange(5))).mean(dim=1))
            return logits

    with pytest.raises(TrainingError, match=r"layer position: .* \(5,\) is not one row for each"):
        clipped("fast", vectors(Positions()), 1.0)


def test_inputs_overwritten_in_place_are_found() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            # torch itself finds this only where it computes the weight's gradient.
            hidden = x + 1.0
            logits: Tensor = self.first(hidden)
            hidden += 1.0
            return logits

    with pytest.raises(TrainingError, match="layer first: its inputs were overwritten"):
        clipped("fast", vectors(Overwriting()), 1.0)


def test_a_layer_with_two_inputs_is_refused() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = nn.Bilinear(5, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.pair(x, x)
            return logits

    with pytest.raises(TrainingError, match="layer pair: only layers from one tensor"):
        clipped("fast", vectors(Pair()), 1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_leaves_the_model_as_it_was(engine: EngineName) -> None:
    model = nn.Sequential(nn.Linear(5, 4), Scaled(4), nn.Linear(4, 3))
    before = copy.deepcopy(model.state_dict())
    trained = list(model.parameters())
    optimizer = optimizer_of(trained, 1.0)

    def fail() -> None:
        with gradient_engine(engine, model, f.cross_entropy, optimizer) as gradients:
            gradients.add(torch.randn(8, 5), torch.randint(0, 3, (8,)), np.arange(8))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not hasattr(module, "ft_compute_sample_grad")


class Watcher:
    """A probe that turns one record's gradient into a canary and watches the sums."""

    def __init__(self, change: bool) -> None:
        self.change = change
        self.seen: list[list[Tensor]] = []
        self.sums: list[Tensor] = []

    def begin(
        self, examples: Examples, dp: DpConfig, generator: SecureGenerator
    ) -> tuple[Examples, DpConfig, SecureGenerator]:
        return examples, dp, generator

    def before_clipping(self, gradients: Sequence[Tensor], records: NDArray[np.int64]) -> None:
        assert all(len(g) == len(records) for g in gradients)
        self.seen.append([g.clone() for g in gradients])
        if self.change:
            for g in gradients:
                g[records == 2] = 7.0

    def after_noise(self, sums: Sequence[Tensor]) -> None:
        self.sums = [s.clone() for s in sums]


@pytest.mark.parametrize("change", [False, True])
def test_a_probe_sees_and_changes_the_same_gradients_in_both_engines(change: bool) -> None:
    task = TinyTask()
    start = nn.Sequential(nn.Linear(5, 4), nn.GroupNorm(1, 4), nn.Tanh(), nn.Linear(4, 3))
    quiet = DpConfig(noise_multiplier=0.1, clip_norm=0.3)
    found = {}
    for engine in ENGINES:
        watcher = Watcher(change)
        training = TrainingConfig(
            sampling_rate=1.0,
            local_steps=1,
            nominal_records=60,
            max_physical_batch=25,
            engine=engine,
        )
        with probing(watcher):
            train_private(
                copy.deepcopy(start),
                task,
                task.examples,
                training,
                quiet,
                SecureGenerator.from_seed("probe"),
            )
        assert [len(g[0]) for g in watcher.seen] == [16, 16, 16, 12]
        found[engine] = watcher
    for ones, others in zip(found["fast"].seen, found["opacus"].seen, strict=True):
        assert apart(ones, others) <= 1e-5
    # The same noise: what differs is the clipped sum.
    assert apart(found["fast"].sums, found["opacus"].sums) <= 1e-6 * 60


def test_a_canary_in_the_fast_engine_adds_exactly_the_clip_norm() -> None:
    case = vectors(nn.Linear(5, 3))
    with_canary = clipped("fast", case, 0.3, probe=Watcher(True))
    without = clipped("fast", case.only(torch.arange(8) != 2), 0.3, probe=Watcher(False))
    assert apart(with_canary, without) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_both_engines_take_the_same_steps(engine: EngineName) -> None:
    task = TinyTask()
    start = nn.Linear(5, 3)
    with torch.no_grad():
        start.weight.copy_(torch.linspace(-1.0, 1.0, 15).view(3, 5))
        start.bias.zero_()
    reference = copy.deepcopy(start)
    training = TrainingConfig(sampling_rate=0.3, local_steps=12, nominal_records=60)
    for model, name in ((start, engine), (reference, "auto")):
        train_private(
            model,
            task,
            task.examples,
            training.model_copy(update={"engine": name}),
            DpConfig(noise_multiplier=1.0),
            SecureGenerator.from_seed("steps"),
        )
    # Batches and noise are drawn from the same stream, in the same order.
    assert apart(list(start.parameters()), list(reference.parameters())) <= 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("tf32", [False, True])
def test_on_cuda_the_sums_are_those_of_the_processor(tf32: bool) -> None:
    torch.manual_seed(11)
    case = Case(small_cnn(), torch.rand(32, 1, 28, 28), torch.randint(0, 10, (32,)))
    here = clipped("fast", case, 0.3)
    there = Case(copy.deepcopy(case.model).cuda(), case.inputs.cuda(), case.targets.cuda())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        sums = clipped("fast", there, 0.3)
        for record in range(4):
            alone = clipped("fast", there.only(torch.tensor([record]).cuda()), 0.01)
            assert apart(alone, [torch.zeros_like(a) for a in alone]) <= 0.01 * (1 + 1e-6)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = True
    assert apart([s.cpu() for s in sums], here) <= (1e-2 if tf32 else 1e-5) * 0.3 * 32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_under_bfloat16_autocast_no_record_passes_the_clip_norm() -> None:
    torch.manual_seed(12)
    inputs, targets = torch.rand(16, 1, 28, 28).cuda(), torch.randint(0, 10, (16,)).cuda()
    case = Case(small_cnn().cuda(), inputs, targets)
    for record in range(16):
        one = case.only(torch.tensor([record]).cuda())
        alone = clipped("fast", one, 0.01, precision="bf16")
        assert apart(alone, [torch.zeros_like(a) for a in alone]) <= 0.01 * (1 + 1e-6)

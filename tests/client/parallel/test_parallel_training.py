"""Two processes under gloo train as one does: same sums, noise once, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tiny_task import TinyTask
from torch import Tensor
from torch.nn import functional as f

from fedveil.client.local_training import TrainingError
from fedveil.client.parallel.together import Together
from fedveil.client.trainer import Alone, Trainer, TrainingJob
from fedveil.config import DpConfig, TrainingConfig
from fedveil.privacy.randomness import SecureGenerator
from fedveil.tasks.base import Examples
from fedveil.tasks.models import tanh_mlp

TWO = Together(("cpu", "cpu"))
RECORDS = 120


@dataclass(frozen=True)
class Loss:
    """Cross entropy, but in a process other than the first what `elsewhere` says."""

    elsewhere: str
    home: int

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if os.getpid() != self.home:
            if self.elsewhere == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no loss today")
        return f.cross_entropy(outputs, targets)


class Case(TinyTask):
    """Images and a perceptron; another loss where it is given one."""

    def __init__(self, loss: Loss | None = None) -> None:
        super().__init__()
        self._loss = loss

    @property
    def loss(self):  # type: ignore[no-untyped-def]
        return self._loss or f.cross_entropy


def job(
    noise: float = 0.0, task: TinyTask | None = None, records: int = RECORDS, **training: object
) -> TrainingJob:
    torch.manual_seed(4)
    x, y = torch.rand(records, 1, 8, 8), torch.randint(0, 10, (records,))
    settings = {"sampling_rate": 0.4, "local_steps": 5, "nominal_records": RECORDS}
    return TrainingJob(
        tanh_mlp((64, 32, 10)),
        task or Case(),
        Examples(x, y),
        TrainingConfig.model_validate(settings | {"learning_rate": 0.5} | training),
        # Zero is no noise that may be asked for; the sums show bare with it.
        DpConfig(noise_multiplier=1.0, clip_norm=0.3).model_copy(
            update={"noise_multiplier": noise}
        ),
        SecureGenerator.from_seed("parallel"),
    )


def weights_after(trainer: Trainer, one: TrainingJob) -> Tensor:
    result = trainer.train(one)
    assert result.steps == one.training.local_steps
    assert result.loss is None or one.dp is None
    return torch.cat([p.detach().flatten() for p in one.model.parameters()])


@pytest.mark.parametrize(
    ("noise", "settings"),
    [
        (0.0, {}),
        (1.0, {}),
        (0.0, {"engine": "opacus"}),
        (0.0, {"precision": "bf16"}),
        # Several passes in each process, and of other numbers.
        (0.0, {"max_physical_batch": 16, "sampling_rate": 0.9}),
        # Batches of one record or none.
        (0.0, {"sampling_rate": 0.01}),
        (1.0, {"optimizer": "adam", "learning_rate": 0.01}),
    ],
)
def test_two_processes_have_the_weights_of_one(noise: float, settings: dict[str, object]) -> None:
    # With noise too: it is the same, from the same generator, and it is there once.
    before = torch.cat([p.detach().flatten() for p in job().model.parameters()])
    alone, together = (weights_after(t, job(noise, **settings)) for t in (Alone(), TWO))
    moved = float((alone - before).norm())
    assert float((alone - together).norm()) < (5e-3 if "precision" in settings else 1e-5) * moved
    assert moved > 1e-3 or settings.get("sampling_rate") == 0.01


def test_three_processes_do_too() -> None:
    alone = weights_after(Alone(), job(1.0))
    assert torch.allclose(weights_after(Together(("cpu",) * 3), job(1.0)), alone, atol=1e-5)


def test_the_noise_of_a_step_on_nothing_has_the_standard_deviation_of_one() -> None:
    one = job(2.0, records=0, local_steps=1, learning_rate=1.0)
    before = torch.cat([p.detach().flatten() for p in one.model.parameters()])
    noise = (weights_after(TWO, one) - before) * 0.4 * RECORDS
    # Twice the noise would be 1.41 times as wide.
    assert float(noise.std()) == pytest.approx(2.0 * 0.3, rel=0.1)


def test_proximal_terms_and_frozen_layers_are_as_alone() -> None:
    found = []
    for trainer in (Alone(), TWO):
        one = replace(job(), proximal_mu=0.5)
        first = next(one.model.parameters())
        frozen = first.requires_grad_(False).clone()
        found.append(weights_after(trainer, one))
        assert torch.equal(first, frozen)
    assert torch.allclose(*found, atol=1e-5)


def test_without_privacy_a_client_trains_alone() -> None:
    one, other = (replace(job(), dp=None) for _ in range(2))
    assert torch.equal(weights_after(Alone(), one), weights_after(TWO, other))


@pytest.mark.parametrize(
    ("elsewhere", "says"), [("raises", "ValueError: no loss today"), ("killed", "was ended")]
)
def test_a_process_that_fails_ends_the_training(elsewhere: str, says: str) -> None:
    task = Case(Loss(elsewhere, os.getpid()))
    with pytest.raises(TrainingError, match=f"on another device of this client, .*{says}"):
        TWO.train(job(1.0, task))
    assert not torch.distributed.is_initialized()
    # And the next is none the worse.
    weights_after(TWO, job(1.0))


def test_the_first_process_own_error_is_told_as_it_is() -> None:
    one = job(1.0)

    class Broken(SecureGenerator):
        def gaussian(self, count, law):  # type: ignore[no-untyped-def]
            raise RuntimeError("no noise today")

    with pytest.raises(RuntimeError, match="no noise today"):
        TWO.train(replace(one, generator=Broken(bytes(32))))


def test_what_cannot_be_handed_over_is_refused() -> None:
    one = job(1.0)
    one.model.register_forward_hook(lambda *_: None)
    with pytest.raises(TrainingError, match="of task tiny cannot be handed to the process"):
        TWO.train(one)


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(TrainingError, match=r'on another device of this client.*"cuda:9"'):
        Together(("cpu", "cuda:9")).train(job(1.0))


ENDLESS = """
import multiprocessing, sys, threading, time
sys.path[:0] = {path!r}

def tell():
    while not (children := multiprocessing.active_children()):
        time.sleep(0.01)
    print(children[0].pid, flush=True)

if __name__ == "__main__":
    from test_parallel_training import TWO, job
    threading.Thread(target=tell, daemon=True).start()
    TWO.train(job(1.0, local_steps=10**7))
"""


def test_the_others_end_with_the_first_however_that_ends(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    here = Path(__file__).resolve().parent
    script.write_text(ENDLESS.format(path=[str(here), str(here.parent.parent)]))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        other = int(first.stdout.readline())
        first.kill()
    for _ in range(600):
        if not Path(f"/proc/{other}").exists():
            return
        time.sleep(0.05)
    os.kill(other, signal.SIGKILL)
    pytest.fail("a process outlived the one that it served")

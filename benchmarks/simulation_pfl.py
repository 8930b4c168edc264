"""Federated averaging on MNIST's writers with pfl-research; runs in an environment of its own.

As pfl's tutorials write it: users' tensors in memory, already cut into batches by its cache after a
user's first round, `PyTorchModel`, `FederatedAveraging`, `SimulatedBackend`. Nothing is printed,
and no user is evaluated, which pfl would do in the first round. Prints one line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism
from simulation_work import Work
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

# As `fedveil.tasks.models` has them, which this environment cannot import.
MODELS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(784, 256), nn.Tanh()),
        *(nn.Linear(256, 128), nn.Tanh()),
        nn.Linear(128, 10),
    ),
    "cnn": lambda: nn.Sequential(
        *(nn.Conv2d(1, 16, 8, stride=2, padding=3), nn.Tanh(), nn.MaxPool2d(2, stride=1)),
        *(nn.Conv2d(16, 32, 4, stride=2), nn.Tanh(), nn.MaxPool2d(2, stride=1)),
        nn.Flatten(),
        *(nn.Linear(32 * 4 * 4, 32), nn.Tanh()),
        nn.Linear(32, 10),
    ),
}


class Classifier(nn.Module):
    """The task's model, with what pfl asks of one.

    Parameters
    ----------
    network : nn.Module
        The model itself.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the classes' logits."""
        return self.network(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross entropy of a batch."""
        self.train()
        return cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        """Return loss and accuracy."""
        self.eval()
        outputs = self(x)
        right = int((outputs.argmax(dim=1) == y).sum())
        loss = float(cross_entropy(outputs, y, reduction="sum"))
        return {"loss": Weighted(loss, len(y)), "accuracy": Weighted(right, len(y))}


class Averaging(FederatedAveraging):
    """Federated averaging that evaluates no user, not even in the first round."""

    def get_next_central_contexts(self, *arguments, **named):
        """Return what pfl returns, without evaluation."""
        contexts, *rest = super().get_next_central_contexts(*arguments, **named)
        if contexts is not None:
            contexts = tuple(dataclasses.replace(one, do_evaluation=False) for one in contexts)
        return contexts, *rest


def main() -> None:
    """Train, and print the times."""
    work = Work(**json.loads(sys.argv[1]))
    data = Path(work.data_dir)
    torch.manual_seed(work.seed)
    np.random.seed(work.seed)  # where pfl takes its seeds from
    with np.load(data / "mnist_writers.npz") as arrays:
        writers = arrays["writer_train"]
    with np.load(data / "mnist.npz") as arrays:
        x, y = pixels(arrays["x_train"]), torch.from_numpy(arrays["y_train"].astype(np.int64))
        test_x, test_y = pixels(arrays["x_test"]), arrays["y_test"].astype(np.int64)
    users = {}
    for writer in np.unique(writers).tolist():
        mine = torch.from_numpy(np.flatnonzero(writers == writer))
        users[writer] = PyTorchTensorDataset((x[mine], y[mine]), user_id=str(writer))
    sampler = get_user_sampler("random", list(users))
    federated = FederatedDataset(users.__getitem__, sampler)
    test = PyTorchTensorDataset((test_x, torch.from_numpy(test_y)))
    classifier = Classifier(MODELS[work.model]())
    model = PyTorchModel(
        classifier,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(classifier.parameters(), lr=1.0),
    )
    postprocessors = []
    if work.noise_multiplier is not None:
        gaussian = GaussianMechanism(work.clip_norm, work.noise_multiplier)
        postprocessors.append(CentrallyAppliedPrivacyMechanism(gaussian))
    backend = SimulatedBackend(federated, federated, postprocessors=postprocessors)
    evaluation = CentralEvaluationCallback(test, NNEvalHyperParams(local_batch_size=None))
    began, cpu_began = time.perf_counter(), time.process_time()
    Averaging().run(
        NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=work.rounds,
            train_cohort_size=work.cohort,
            val_cohort_size=None,
        ),
        backend,
        model,
        NNTrainHyperParams(
            local_num_epochs=None,
            local_num_steps=work.local_steps,
            local_learning_rate=work.learning_rate,
            local_batch_size=work.batch_size,
        ),
        callbacks=[evaluation],
        send_metrics_to_platform=False,
    )
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    accuracy = classifier.metrics(test_x, torch.from_numpy(test_y))["accuracy"].overall_value
    print(json.dumps({"seconds": seconds, "cpu": cpu, "accuracy": accuracy}))


def pixels(images: np.ndarray) -> Tensor:
    """Return images in [0, 1], with a channel axis."""
    return torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1)


if __name__ == "__main__":
    main()

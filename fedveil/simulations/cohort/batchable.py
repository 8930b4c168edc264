"""Which settings can be trained many clients at once, and which not, for what reason."""

from __future__ import annotations

import copy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedveil.client.dp_training import train_private
from fedveil.client.gradients.blanks import blanks
from fedveil.client.local_training import resolve_device, train_plain
from fedveil.client.probing import current_probe
from fedveil.client.trainer import TrainingJob
from fedveil.config import Config
from fedveil.errors import FedveilError
from fedveil.privacy.randomness import SecureGenerator
from fedveil.simulations.cohort.layers import why_not
from fedveil.simulations.cohort.plain import train_plainly
from fedveil.simulations.cohort.private import train_privately
from fedveil.simulations.cohort.stack import Stack, layers_of
from fedveil.tasks.base import Examples, Task

__all__ = ["unbatchable", "why_alone"]

_BY_NUMBER = {
    *("sgd", "adam", "adamw", "adamax", "nadam", "radam"),
    *("adagrad", "adadelta", "rmsprop", "rprop", "asgd"),
}
"""Optimisers that move each number by its own gradients alone, whoever else is in the tensor."""

_TRIAL_RECORDS = (5, 3)
_TRIAL_TOLERANCE = 1e-4

_reasons: WeakKeyDictionary[Task, dict[str, str | None]] = WeakKeyDictionary()


def unbatchable(config: Config, task: Task) -> str | None:
    """Return why the clients of a run cannot be trained together; None where they can.

    Parameters
    ----------
    config : Config
        The run's settings; noise and nominal records may be open.
    task : Task
        Its task.

    Raises
    ------
    FedveilError
        If the task's data cannot be loaded.
    """
    if config.dp.mode == "record/distributed":
        return (
            "in the mode record/distributed each record's gradient is computed alone, so that no "
            "other bears on its rounding"
        )
    examples, _ = task.load(0, config.federation.clients)
    with torch.random.fork_rng(devices=[]):
        model = task.model()
    training = config.training.model_copy(
        update={"nominal_records": config.training.nominal_records or max(1, len(examples))}
    )
    dp = None
    if config.dp.mode == "record/local":
        noise = config.dp.noise_multiplier or 0.0
        dp = config.dp.model_copy(update={"noise_multiplier": noise})
    return why_alone(TrainingJob(model, task, examples, training, dp, SecureGenerator()))


def why_alone(job: TrainingJob) -> str | None:
    """Return why a client must be trained alone; None where it may be together with its like.

    What no rule foresees, a trial finds: two small clients are trained together and alone, and the
    results compared. Its outcome is kept for the task and the settings.
    """
    if current_probe() is not None:
        return "an audit watches each client"
    training, dp = job.training, job.dp
    if resolve_device(training.device).type != "cpu":
        return "training many clients at once was never tried on CUDA"
    if training.precision != "fp32":
        return f'training.precision = "{training.precision}" takes one client at a time'
    if dp is not None and (dp.noise_multiplier is None or training.nominal_records is None):
        return "dp.noise_multiplier or training.nominal_records is open"
    if dp is not None and training.engine == "opacus":
        return 'training.engine = "opacus" takes one client at a time'
    if training.optimizer.lower() not in _BY_NUMBER:
        return (
            f'training.optimizer = "{training.optimizer}" may mix what belongs to several '
            f"clients; known not to: {', '.join(sorted(_BY_NUMBER))}"
        )
    known = _reasons.setdefault(job.task, {})
    key = f"{dp is not None} {training.sampling}"
    if key not in known:
        known[key] = _of_the_model(job.model) or _of_a_trial(job)
    return known[key]


def _of_the_model(model: nn.Module) -> str | None:
    for name, _ in model.named_buffers():
        return f"the model has a buffer, {name}"
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return f"layer {name} is dropout, whose draws are each client's own"
    for name, layer in layers_of(model).items():
        reason = why_not(layer)
        if reason is not None:
            return f"layer {name}: {reason}"
    return None


def _of_a_trial(job: TrainingJob) -> str | None:
    try:
        with torch.random.fork_rng(devices=[]):
            return _trial(job)
    except FedveilError as error:
        return f"a trial with two clients failed: {error}"
    except Exception as error:  # noqa: BLE001  # whatever a third party's model raises
        return f"a trial with two clients failed: {type(error).__name__}: {error}"


def _trial(job: TrainingJob) -> str | None:
    torch.manual_seed(0)
    inputs = _made_up(job.examples.x, 2)
    before = torch.get_rng_state()
    job.model.train()(inputs)
    if not torch.equal(before, torch.get_rng_state()):
        return "the model draws random numbers, which are each client's own"
    together, alone = _trial_jobs(job), _trial_jobs(job)
    stack = Stack([one.model for one in together])
    if job.dp is None:
        train_plainly(together, stack)
    else:
        train_privately(together, stack)
    for client, one in enumerate(alone):
        common = (one.model, one.task, one.examples, one.training)
        if one.dp is None:
            train_plain(*common, one.generator, one.proximal_mu)
        else:
            train_private(*common, one.dp, one.generator, one.proximal_mu)
        for p, stacked in zip(one.model.parameters(), stack.weights.values(), strict=True):
            gap = (p - stacked[client]).detach().abs() / (1.0 + p.detach().abs())
            if not bool((gap <= _TRIAL_TOLERANCE).all()):
                return (
                    "a trial with two clients gave other weights than each of them alone: the "
                    "model does not keep its rows apart, or takes weights past its layers"
                )
    return None


def _trial_jobs(job: TrainingJob) -> list[TrainingJob]:
    """Return two clients with other weights and records each, the same at every call."""
    torch.manual_seed(1)
    training = job.training.model_copy(
        update={
            "optimizer": "sgd",
            "optimizer_options": {},
            "learning_rate": 0.1,
            "local_steps": 2,
            "sampling_rate": 0.7,
            "batch_size": 2,
            "nominal_records": _TRIAL_RECORDS[0],
        }
    )
    dp = None if job.dp is None else job.dp.model_copy(update={"noise_multiplier": 0.0})
    jobs = []
    for client, count in enumerate(_TRIAL_RECORDS):
        model = copy.deepcopy(job.model)
        for p in model.parameters():
            p.data += 0.1 * torch.randn_like(p)
        examples = Examples(_made_up(job.examples.x, count), blanks(job.examples.y, count))
        generator = SecureGenerator.from_seed("trial", client)
        jobs.append(TrainingJob(model, job.task, examples, training, dp, generator, 0.1))
    return jobs


def _made_up(like: Tensor, count: int) -> Tensor:
    """Return records of the same shape and type: noise where they are fractions."""
    if like.is_floating_point():
        return torch.randn(count, *like.shape[1:], dtype=like.dtype)
    if not len(like):
        return blanks(like, count)
    return like[torch.randint(0, len(like), (count,))]

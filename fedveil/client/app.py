"""The Flower `ClientApp`: joins, trains and evaluates on request."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedveil.client.credentials import Credentials, credentials_of_node, needs_secure_aggregation
from fedveil.client.guard import Guard, GuardOf, guard_of_node
from fedveil.client.parallel.devices import devices_of
from fedveil.client.parallel.together import Together
from fedveil.client.requests import (
    RequestError,
    clip_norm_of,
    config_of,
    partition_of,
    turn_of,
)
from fedveil.client.secure_aggregation import make_secure_aggregation_mod
from fedveil.client.shared_noise import dimension_of
from fedveil.client.sum_check import check_sum
from fedveil.client.trainer import Alone, TrainingJob, current_trainer
from fedveil.config import Config, PartitionConfig, TaskConfig
from fedveil.flower import show_errors_in_one_line
from fedveil.hygiene import forbid_core_dumps
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task

if TYPE_CHECKING:
    from torch import nn

    from fedveil.privacy.randomness import SecureGenerator
    from fedveil.tasks.base import Examples, Task

__all__ = ["app", "make_client_app", "partition_spec", "task_of"]

CredentialsOf = Callable[[Context], Credentials]

_WHOLE_MODELS = {"none", "record/local"}
"""Modes in which a client answers with the model that it trained, its noise in it already."""


def make_client_app(
    credentials: CredentialsOf,
    is_secure_aggregation_required: Callable[[Context], bool],
    guard: GuardOf,
) -> ClientApp:
    """Return the app that trains and evaluates, masked where the server asks for it.

    Parameters
    ----------
    credentials : callable
        Returns the credentials of the node whose context it is given.
    is_secure_aggregation_required : callable
        Whether that node answers no other way.
    guard : callable
        Returns the guard of that node: what its owner allows. None where there is no policy.
    """

    def strengthened(context: Context) -> Credentials:
        own, found = credentials(context), guard(context)
        return own if found is None else found.strengthen(own)

    def is_required(context: Context) -> bool:
        found = guard(context)
        by_policy = found is not None and found.policy.secure_aggregation
        return by_policy or is_secure_aggregation_required(context)

    client_app = ClientApp(mods=[make_secure_aggregation_mod(strengthened, is_required)])

    @client_app.query()
    def join_run(message: Message, context: Context) -> Message:
        return join(message, context, strengthened, is_required, guard(context))

    @client_app.train()
    def train_model(message: Message, context: Context) -> Message:
        return train(message, context, guard(context))

    @client_app.evaluate()
    def evaluate_model(message: Message, context: Context) -> Message:
        return evaluate(message, context, guard(context))

    return client_app


def join(
    message: Message,
    context: Context,
    credentials: CredentialsOf,
    is_required: Callable[[Context], bool],
    guard: Guard | None,
) -> Message:
    """Check that this client can serve the run, before any round, and say who it is."""
    config = config_of(message)
    if guard is not None:
        guard.admit(config)
    if config.secagg.enabled:
        found = credentials(context)
        found.roster.check(found.identity.name, found.identity.public_key)
    elif is_required(context):
        raise RequestError(
            "the run has secagg.enabled = false, and this client answers under secure aggregation "
            'only; set it to true, or start this node with secagg="off"'
        )
    _preflight(config, context)
    return Message(
        RecordDict({"join": MetricRecord({"partition": partition_of(context, config)})}),
        reply_to=message,
    )


def train(message: Message, context: Context, guard: Guard | None) -> Message:
    """Train on this client's records and answer with what the mode lets leave."""
    config = config_of(message)
    clip_norm = clip_norm_of(message, config)
    if config.dp.is_private and config.dp.noise == "distributed":
        check_sum(message.content, config)
    if guard is not None:
        # Before a record is touched, and before torch takes its time.
        turn = turn_of(message)
        if config.dp.mode in _WHOLE_MODELS:
            guard.charge(config, "train", *turn)
        else:
            dimension = dimension_of(message.content.array_records["arrays"])
            guard.charge(config, "train", *turn, dimension=dimension, clip_norm=clip_norm)
    from fedveil.client.local_training import place
    from fedveil.client.weights import packed

    task = _task(config, context)
    examples, _ = _examples(config, context)
    devices = devices_of(context)
    model = place(_model(config, message, task), (*devices, config.training.device)[0])
    generator = _generator(config, message, context)
    if config.dp.is_private:
        _preflight(config, context)
    if config.dp.mode not in _WHOLE_MODELS:
        from fedveil.client.private_updates import answer_privately

        turn = turn_of(message)
        answer = answer_privately(model, task, examples, config, turn, clip_norm, generator)
        return Message(answer, reply_to=message)
    mu = config.server_optimizer.proximal_mu if config.server_optimizer.name == "fedprox" else 0.0
    dp = config.dp if config.dp.is_private else None
    job = TrainingJob(model, task, examples, config.training, dp, generator, mu)
    own = Together(devices) if len(devices) > 1 else Alone()
    result = current_trainer(own).train(job)
    metrics: dict[str, int | float] = {"weight": 1.0, "steps": result.steps}
    if result.loss is not None:
        # Not under privacy: the number of records is private, and so is the loss on them.
        metrics |= {"weight": float(len(examples)), "train_loss": result.loss}
    arrays = packed(model.state_dict())
    return Message(
        RecordDict({"arrays": arrays, "metrics": MetricRecord(dict(metrics))}), reply_to=message
    )


def evaluate(message: Message, context: Context, guard: Guard | None) -> Message:
    """Evaluate the global model on this client's test records, as far as they may be told.

    ``noisy`` answers with the number right and the number tested, each with Gaussian noise:
    one record moves the pair by at most sqrt(2) in L2.
    """
    config = config_of(message)
    mode = config.dp.client_metrics
    if mode == "off":
        raise RequestError('dp.metrics = "off": this client releases nothing about its test set')
    if guard is not None:
        guard.charge(config, "evaluate", *turn_of(message))
    import numpy as np

    from fedveil.client.evaluation import correct_answers, summands
    from fedveil.client.evaluation import evaluate as evaluate_model
    from fedveil.client.local_training import place
    from fedveil.privacy.gaussian.mechanism import GaussianMechanism

    task = _task(config, context)
    train_examples, examples = _examples(config, context)
    model = place(_model(config, message, task), config.training.device)
    if mode == "noisy":
        # A record is right or not, and tested: it moves both numbers by at most one.
        mechanism = GaussianMechanism(config.dp.metrics_noise_multiplier, math.sqrt(2.0), 2)
        counts = np.array([[correct_answers(model, task, examples), len(examples)]], dtype=float)
        mechanism.add([counts], [_generator(config, message, context)])
        figures = dict(zip(("correct", "total"), counts[0].tolist(), strict=True))
    else:
        found = evaluate_model(model, task, examples) if len(examples) else {}
        names = set(found or evaluate_model(model, task, train_examples.first()))
        figures = summands(len(examples), found, names | task.partial_metrics)
    return Message(RecordDict({"metrics": MetricRecord(dict(figures))}), reply_to=message)


def partition_spec(config: PartitionConfig) -> PartitionSpec:
    """Return the partition settings as the tasks take them."""
    return PartitionSpec(
        scheme=config.scheme, alpha=config.alpha, shards_per_client=config.shards_per_client
    )


def _task(config: Config, context: Context) -> Task:
    return task_of(config, _data_dir(context))


def _data_dir(context: Context) -> str | None:
    data_dir = context.node_config.get("data-dir")
    return str(data_dir) if data_dir else None


def task_of(config: Config, data_dir: str | None) -> Task:
    """Return the task that the settings name, the same object as long as it is remembered.

    Parameters
    ----------
    config : Config
        The settings.
    data_dir : str, optional
        Where the task's files lie.

    Raises
    ------
    FedveilError
        If there is no such task, or its options make no sense.
    """
    return _cached_task(
        config.task.model_dump_json(), config.partition.model_dump_json(), config.seed, data_dir
    )


@lru_cache(maxsize=4)
def _cached_task(task: str, partition: str, seed: int, data_dir: str | None) -> Task:
    spec = TaskConfig.model_validate_json(task)
    return create_task(
        spec.name,
        seed=seed,
        partition=partition_spec(PartitionConfig.model_validate_json(partition)),
        data_dir=Path(data_dir) if data_dir else None,
        options=spec.options,
    )


def _examples(config: Config, context: Context) -> tuple[Examples, Examples]:
    return _task(config, context).load(partition_of(context, config), config.federation.clients)


def _preflight(config: Config, context: Context) -> None:
    _cached_preflight(
        config.model_dump_json(),
        _data_dir(context),
        partition_of(context, config),
    )


# Remembers what passed, never what was refused: a client that mends its data can join again.
@lru_cache(maxsize=16_384)
def _cached_preflight(config_json: str, data_dir: str | None, partition: int) -> None:
    from fedveil.client.preflight import check_delta_of, client_checks

    config = Config.model_validate_json(config_json)
    task = task_of(config, data_dir)
    examples, _ = task.load(partition, config.federation.clients)
    for check in client_checks(config, task, examples, _fresh_model(task)):
        check.run()
    check_delta_of(config)


def _fresh_model(task: Task) -> nn.Module:
    import torch

    # Building a model draws first weights; the caller's stream must not notice.
    with torch.random.fork_rng(devices=[]):
        return task.model()


def _model(config: Config, message: Message, task: Task) -> nn.Module:
    from fedveil.client.weights import load

    model = _fresh_model(task)
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)  # noqa: S101  # narrows the type; Flower checked it
    misfit = RequestError(
        f"the server's weights do not fit this client's model of task {config.task.name}; run the "
        "same version and task.options on both sides"
    )
    # The charge was reckoned from what the arrays say of themselves; see `dimension_of`.
    said = {name: (array.dtype, tuple(array.shape)) for name, array in arrays.items()}
    state = model.state_dict()
    if said != {name: (str(v.numpy().dtype), tuple(v.shape)) for name, v in state.items()}:
        raise misfit
    try:
        load(model, arrays)
    except RuntimeError:
        raise misfit from None
    return model


def _generator(config: Config, message: Message, context: Context) -> SecureGenerator:
    """Return the source of this message's batches and noise.

    Fresh from the operating system under privacy, unless ``insecure_seed`` says otherwise;
    from the public seed without.
    """
    from fedveil.privacy.randomness import SecureGenerator

    turn = (message.metadata.message_type, partition_of(context, config), *turn_of(message))
    if config.dp.is_private and config.dp.insecure_seed is None:
        return SecureGenerator()
    if config.dp.is_private:
        return SecureGenerator.from_seed("insecure", config.dp.insecure_seed or 0, *turn)
    # Without noise a repeated attempt repeats the batches too, so that a resumed run is the
    # same as one that was never interrupted.
    return SecureGenerator.from_seed("plain", config.seed, *turn[:3])


show_errors_in_one_line()
app = make_client_app(credentials_of_node, needs_secure_aggregation, guard_of_node)


@app.lifespan()
def _deployed(_: Context) -> Iterator[None]:
    # Of the app that Flower starts a process for; a simulation makes its own.
    forbid_core_dumps()
    yield

"""The model of a run: described, loaded from the encrypted store, checked, and run."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from pydantic import ValidationError
from torch import nn

from fedveil.server.inference.buckets import ladder
from fedveil.server.inference.devices import (
    Acceleration,
    find_devices,
    tensors_of,
    wipe_tensors,
)
from fedveil.server.inference.errors import RoundRefusedError, ServeError
from fedveil.server.inference.oip import Array, Limits, TensorSpec, dtype_name
from fedveil.server.inference.replica import Forward, Replica, forward
from fedveil.server.inference.source import RunSource
from fedveil.server.inference.trial import Trial
from fedveil.server.records import RoundRecord
from fedveil.tasks.base import Task, TaskError
from fedveil.tasks.forms import TextForm
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task
from fedveil.vault.buffers import Shadow
from fedveil.vault.header import Header

__all__ = ["INPUT", "OUTPUT", "Engine", "ServedRound"]

INPUT = "input"
OUTPUT = "output"

# What rounding may change between batches of other shapes, as a part of the largest answer.
_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
_SHOWN = 200


@dataclass(frozen=True, eq=False)
class ServedRound:
    """The weights of one round, ready to answer.

    Attributes
    ----------
    round : int
        Which.
    run : str
        Of which run.
    created : str
        When it was committed.
    epsilon : float or None
        Largest epsilon of any client up to it, as the coordinator signed it; None where nothing
        is claimed.
    accuracy : float or None
        As the coordinator signed it.
    modules : tuple of Module
        The model, once for each replica.
    """

    round: int
    run: str
    created: str
    epsilon: float | None
    accuracy: float | None
    modules: tuple[nn.Module, ...] = field(repr=False)

    @property
    def version(self) -> str:
        """The round as the protocol's version."""
        return str(self.round)


class Engine:
    """Makes rounds of one run answer.

    Weights are decrypted into memory that nobody uses until every byte is verified, and the model
    answers golden inputs before anybody else may ask it. They are overwritten with zeros once the
    round is neither kept nor used by any batch.

    Parameters
    ----------
    source : RunSource
        The run.
    acceleration : Acceleration
        What the model is run on, and how.
    limits : Limits
        Of which `batch_rows` are what the model is given at once.

    Raises
    ------
    ServeError
        If the inputs of its task are not known, its model gives no answer to each row that is the
        row's own, or it cannot be run as asked.
    FedveilError
        If its task is not installed.
    """

    def __init__(
        self,
        source: RunSource,
        acceleration: Acceleration,
        limits: Limits,
    ) -> None:
        self._reader = source.reader
        self._shadow = Shadow()
        self.task = _task(source)
        self.devices = find_devices(acceleration)
        self.acceleration = acceleration
        inputs = self.task.model_inputs()
        dtype = torch.empty(0, dtype=inputs.dtype).numpy().dtype
        form = self.task.form()
        self.input = TensorSpec(
            INPUT,
            dtype_name(dtype),
            inputs.row_shape,
            inputs.below,
            form if isinstance(form, TextForm) else None,
        )
        self._trial = Trial(self.input, _TOLERANCE[acceleration.dtype])
        padded = _compiled(limits, len(self.devices)) if acceleration.compile else None
        # Rounds are tried while others answer, so that a trial has memory of its own.
        self._replicas, self._trials = (
            [
                Replica(
                    device,
                    self.input,
                    limits.batch_rows,
                    is_bf16=acceleration.dtype == "bf16",
                    padded=padded,
                )
                for device in self.devices
            ]
            for _ in range(2)
        )
        self.output = self._try_blank()

    @property
    def place(self) -> str:
        """What answers, in a few words."""
        device, count = self.devices[0].type, len(self.devices)
        how = [
            *([f"{count} replicas"] if count > 1 else []),
            *(["bf16"] if self.acceleration.dtype == "bf16" else []),
            *(["compiled"] if self.acceleration.compile else []),
        ]
        return f"{device} ({', '.join(how)})" if how else device

    def load_newest(self) -> ServedRound:
        """Decrypt, verify, check and warm up the newest round.

        It is remembered as seen once every byte of it is verified.

        Raises
        ------
        RoundRefusedError
            If the model's answers are not finite, or the round does not say what it is.
        VaultError
            If there is none, the store was set back, or the round does not open or is not signed by
            the coordinator.
        """
        modules: tuple[nn.Module, ...] = (self._blank(),)
        try:
            header, record = self._read_into(modules[0])
            modules = self._place(modules[0])
            self._check(header.round, modules)
        except BaseException:
            _wipe(modules)
            raise
        served = ServedRound(
            round=header.round,
            run=header.run,
            created=header.created,
            epsilon=record.epsilon,
            accuracy=record.accuracy,
            modules=modules,
        )
        # At the end of the process a batch may still be computed, by a thread that goes on.
        weakref.finalize(served, _wipe, modules).atexit = False
        return served

    def run(self, served: ServedRound, rows: Array, replica: int = 0) -> Array:
        """Return the outputs for some rows, which are of the shape and type of `input`.

        Each replica may be used by one thread at a time.
        """
        return self._replicas[replica].answer(served.modules[replica], rows)

    def example(self) -> list[object]:
        """Return the values of one row: a public record where there is one at hand, else zeros."""
        try:
            public = self.task.public_test()
        except TaskError:
            public = None
        row = self._trial.golden[0] if public is None else public.x[0].numpy()
        return list(row.reshape(-1).tolist())

    def _blank(self) -> nn.Module:
        # A copy, since models may share buffers that a task has made once; and what is computed
        # from parameters could not be copied if it had a gradient.
        with torch.no_grad():
            return copy.deepcopy(self.task.model())

    def _read_into(self, module: nn.Module) -> tuple[Header, RoundRecord]:
        live = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
        header = self._reader.latest_into(live, self._shadow)
        try:
            return header, RoundRecord.model_validate_json(str(header.meta["record"]))
        except (KeyError, ValidationError):
            raise RoundRefusedError(f"round {header.round} holds no figures of itself") from None

    def _check(self, round_: int, modules: Sequence[nn.Module]) -> None:
        try:
            fault = self._fault(modules)
        except Exception as error:  # noqa: BLE001  # whatever a model can raise
            # What it says may be of the weights.
            fault = f"cannot be run: {type(error).__name__}"
        if fault is not None:
            raise RoundRefusedError(f"round {round_} {fault}")

    def _place(self, module: nn.Module) -> tuple[nn.Module, ...]:
        modules = [module, *(copy.deepcopy(module) for _ in self._replicas[1:])]
        return tuple(
            replica.place(each) for replica, each in zip(self._replicas, modules, strict=True)
        )

    def _try_blank(self) -> TensorSpec:
        """Try a model that is not trained, and return what it gives."""
        name = self.task.name
        trial, module = self._trials[0], self._place(self._blank())[0]
        try:
            blank = trial.plain(module, self._trial.golden)
        except Exception as error:  # noqa: BLE001  # whatever a model can raise
            raise ServeError(
                f"the model of task {name} cannot be run on {trial.device.type} in "
                f"{self.acceleration.dtype}: {_reason(error)}"
            ) from None
        try:
            fault = self._fault([module])
        except Exception as error:  # noqa: BLE001  # whatever a compiler can raise
            raise ServeError(
                f"--compile: torch.compile fails on the model of task {name}: {_reason(error)}; it "
                "takes a C++ compiler on the CPU, and Triton on a GPU; else leave it out"
            ) from None
        if fault is not None:
            raise ServeError(f"the model of task {name} {fault}")
        return TensorSpec(OUTPUT, dtype_name(blank.dtype), tuple(blank.shape[1:]))

    def _fault(self, modules: Sequence[nn.Module]) -> str | None:
        """Try, and so warm up, a model on its replicas; return what is wrong with it."""
        for trial, module in zip(self._trials, modules, strict=False):
            fault = self._trial.fault(
                partial(trial.plain, module), partial(trial.answer, module), trial.trial_rows
            )
            if fault is not None and self.acceleration.dtype == "bf16":
                # Seen on processors with AMX: their convolutions err from 16 rows on.
                return f"{fault}; in bf16 the processor may be to blame: try --dtype fp32"
            if fault is not None:
                return fault
        return None


def _compiled(limits: Limits, devices: int) -> Forward:
    # Beyond the limit torch would run what is not compiled yet as it is, and say so only in a log.
    torch.compiler.config.recompile_limit += len(ladder(limits.batch_rows)) * devices
    return torch.compile(forward, dynamic=False)


def _wipe(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        wipe_tensors(tensors_of(module))


def _reason(error: Exception) -> str:
    """Return what was raised as one short line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:_SHOWN]


def _task(source: RunSource) -> Task:
    config = source.config
    return create_task(
        config.task.name,
        seed=config.seed,
        partition=PartitionSpec(
            config.partition.scheme, config.partition.alpha, config.partition.shards_per_client
        ),
        data_dir=source.data_dir,
        options=config.task.options,
    )

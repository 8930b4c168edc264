"""The model of a run: described, loaded from the encrypted store, checked, and run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fedveil.server.inference.errors import RoundRefusedError, ServeError
from fedveil.server.inference.oip import Array, TensorSpec, dtype_name
from fedveil.server.inference.source import RunSource
from fedveil.server.records import RoundRecord
from fedveil.tasks.base import Task, TaskError
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task
from fedveil.vault.buffers import Shadow

__all__ = ["INPUT", "OUTPUT", "Engine", "ServedRound"]

INPUT = "input"
OUTPUT = "output"

_WARM_UPS = 3
_IMAGE_AXES = 3


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
    module : Module
        The model.
    """

    round: int
    run: str
    created: str
    epsilon: float | None
    accuracy: float | None
    module: nn.Module = field(repr=False)

    @property
    def version(self) -> str:
        """The round as the protocol's version."""
        return str(self.round)


class Engine:
    """Makes rounds of one run answer.

    Weights are decrypted into memory that nobody uses until every byte is verified, and the model
    answers a golden input before anybody else may ask it.

    Parameters
    ----------
    source : RunSource
        The run.

    Raises
    ------
    ServeError
        If the inputs of its task are not known.
    FedveilError
        If its task is not installed.
    """

    def __init__(self, source: RunSource) -> None:
        self._reader = source.reader
        self._shadow = Shadow()
        self.task = _task(source)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        inputs = self.task.model_inputs()
        dtype = torch.empty(0, dtype=inputs.dtype).numpy().dtype
        self.input = TensorSpec(INPUT, dtype_name(dtype), inputs.row_shape, inputs.below)
        # Zeros and ones are inputs that every model takes, and any weight that is not finite
        # makes its mark on the outputs of one of them.
        self._golden = np.stack([np.full(inputs.row_shape, value, dtype=dtype) for value in (0, 1)])
        blank = self._answer(self._place(self.task.model()), self._golden)
        if blank.ndim < 1 or len(blank) != len(self._golden):
            raise ServeError(
                f"the model of task {self.task.name} gives shape {tuple(blank.shape)} for "
                f"{len(self._golden)} rows: only models with one output row a record are served"
            )
        self.output = TensorSpec(OUTPUT, dtype_name(blank.dtype), tuple(blank.shape[1:]))

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
        module = self.task.model()
        live = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
        header = self._reader.latest_into(live, self._shadow)
        round_ = header.round
        try:
            record = RoundRecord.model_validate_json(str(header.meta["record"]))
        except (KeyError, ValidationError):
            raise RoundRefusedError(f"round {round_} holds no figures of itself") from None
        module = self._place(module)
        for _ in range(_WARM_UPS):
            answer = self._answer(module, self._golden)
        if answer.shape[1:] != self.output.row_shape or len(answer) != len(self._golden):
            raise RoundRefusedError(f"round {round_} answers in another shape than the model")
        if answer.dtype.kind == "f" and not np.isfinite(answer).all():
            raise RoundRefusedError(
                f"round {round_} answers a golden input with NaN or infinity: it has diverged"
            )
        return ServedRound(
            round=round_,
            run=header.run,
            created=header.created,
            epsilon=record.epsilon,
            accuracy=record.accuracy,
            module=module,
        )

    def run(self, served: ServedRound, rows: Array) -> Array:
        """Return the outputs for some rows, which are of the shape and type of `input`."""
        return self._answer(served.module, rows)

    def example(self) -> list[object]:
        """Return the values of one row: a public record where there is one at hand, else zeros."""
        try:
            public = self.task.public_test()
        except TaskError:
            public = None
        row = self._golden[0] if public is None else public.x[0].numpy()
        return list(row.reshape(-1).tolist())

    def _place(self, module: nn.Module) -> nn.Module:
        module = module.eval().requires_grad_(False).to(self.device)
        if self._is_of_images:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module

    def _answer(self, module: nn.Module, rows: Array) -> Array:
        # torch warns of memory that it may not write, and of a stride that is not its own.
        writable = np.require(rows, requirements=["C", "W"])
        with torch.inference_mode():
            inputs = torch.from_numpy(writable).to(self.device)
            if self._is_of_images:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            outputs: Tensor = module(inputs)
            answer: Array = outputs.cpu().numpy()
            return answer

    @property
    def _is_of_images(self) -> bool:
        return len(self.input.row_shape) == _IMAGE_AXES


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

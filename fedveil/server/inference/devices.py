"""What a model is run on: which devices, in which type of number, compiled or not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedveil.server.inference.errors import ServeError

__all__ = ["AS_TRAINED", "Acceleration", "find_devices", "tensors_of", "wipe_tensors"]

_TYPES = ("fp32", "bf16")
_MOST_REPLICAS = 64


@dataclass(frozen=True)
class Acceleration:
    """How a model is run; what is not asked for is not done.

    Parameters
    ----------
    dtype : str
        "fp32" to compute in the types that the model was trained in, "bf16" to turn weights and
        inputs into bfloat16, which keeps 8 bits of 24: answers differ by about a hundredth then.
    compile : bool
        Whether `torch.compile` makes the model's code.
    replicas : int or None
        How many copies of the model answer at the same time; None for one on each GPU, or one on
        the CPU where there is no GPU.

    Raises
    ------
    ServeError
        If it is none of these.
    """

    dtype: str = "fp32"
    compile: bool = False
    replicas: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in _TYPES:
            raise ServeError(f"--dtype {self.dtype}: a type is one of {', '.join(_TYPES)}")
        if self.replicas is not None and not 1 <= self.replicas <= _MOST_REPLICAS:
            raise ServeError(
                f"--replicas {self.replicas}: is not between 1 and {_MOST_REPLICAS}; leave it out "
                "for one a GPU"
            )


AS_TRAINED = Acceleration()
"""On all GPUs or the CPU, in the types of training, not compiled."""


def find_devices(wanted: Acceleration) -> tuple[torch.device, ...]:
    """Return the device of each replica: a GPU of its own, or the CPU where there is none.

    Raises
    ------
    ServeError
        If there are fewer GPUs than replicas, or one that has no bfloat16.
    """
    if not torch.cuda.is_available():
        return (torch.device("cpu"),) * (wanted.replicas or 1)
    there = torch.cuda.device_count()
    if (wanted.replicas or 1) > there:
        raise ServeError(
            f"--replicas {wanted.replicas}: a replica takes a GPU of its own, and there are {there}"
        )
    devices = tuple(torch.device("cuda", index) for index in range(wanted.replicas or there))
    for device in devices:
        with torch.cuda.device(device):
            if wanted.dtype == "bf16" and not torch.cuda.is_bf16_supported():
                name = torch.cuda.get_device_name(device)
                raise ServeError(f"--dtype bf16: {name} has no bfloat16; leave it out")
    return devices


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return the memory of a model's parameters and buffers, whatever the model does later."""
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]


def wipe_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite all memory of some tensors, which nobody may be using, with zeros."""
    for tensor in tensors:
        whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        whole.set_(tensor.untyped_storage()).zero_()

"""What goes between the processes that train one client's model together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist

__all__ = ["Link", "linked"]

_LONGEST_STEP = timedelta(minutes=30)
_NO_MORE = -1
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class Link:
    """One process's place among those that train together.

    Parameters
    ----------
    rank, size : int
        Its number, and how many there are. Number 0 draws batches and noise and takes the steps.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    def hand_out(
        self, batch: NDArray[np.int64], parameters: Sequence[nn.Parameter]
    ) -> NDArray[np.int64]:
        """Begin a step: tell the others batch and weights, and return this process's records.

        Parameters
        ----------
        batch : ndarray
            All records of the step.
        parameters : sequence of Parameter
            The trained ones, all of them.
        """
        dist.broadcast(torch.tensor([len(batch)]), 0)
        dist.broadcast(torch.from_numpy(batch), 0)
        for p in parameters:
            dist.broadcast(p.detach().contiguous(), 0)
        return self._own(batch)

    def receive(self, parameters: Sequence[nn.Parameter]) -> NDArray[np.int64] | None:
        """Wait for the next step, take its weights, and return this process's records.

        None when there is no other step.
        """
        count = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(count, 0)
        if int(count) == _NO_MORE:
            return None
        batch = torch.empty(int(count), dtype=torch.int64)
        dist.broadcast(batch, 0)
        for p in parameters:
            weights = p.detach().contiguous()
            dist.broadcast(weights, 0)
            p.detach().copy_(weights)
        return self._own(batch.numpy())

    def add_up(self, sums: Sequence[Tensor]) -> list[Tensor]:
        """End a step: return the sums over all processes, in the first; in others, nothing of use.

        Parameters
        ----------
        sums : sequence of Tensor
            This process's, without noise.
        """
        total = [one.detach().contiguous() for one in sums]
        for one in total:
            dist.reduce(one, 0)
        return total

    def _own(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        # By what they are, not by where they stand: no record decides on which device, and with
        # what rounding, another's gradient is computed.
        own: NDArray[np.int64] = batch[batch % self.size == self.rank]
        return own

    def end(self) -> None:
        """Tell the others that there is no other step."""
        dist.broadcast(torch.tensor([_NO_MORE]), 0)


@contextmanager
def linked(rank: int, size: int, device: torch.device, folder: Path) -> Iterator[Link]:
    """Meet the other processes, and part from them at the end.

    What is said is not encrypted, and goes through this machine's memory and loopback alone.

    Parameters
    ----------
    rank, size : int
        As `Link` has them.
    device : torch.device
        Where this process computes.
    folder : Path
        Where they meet: private to this user, and empty at first.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _loopback():
        dist.init_process_group(
            backend,
            init_method=f"file://{folder / 'meeting'}",
            rank=rank,
            world_size=size,
            timeout=_LONGEST_STEP,
        )
    try:
        yield Link(rank, size)
    finally:
        dist.destroy_process_group()


@contextmanager
def _loopback() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _INTERFACES}
    os.environ.update(dict.fromkeys(_INTERFACES, "lo"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

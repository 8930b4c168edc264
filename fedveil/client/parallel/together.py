"""The first process of several that train a client's model: the client's own."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from fedveil.client.trainer import Alone, TrainingJob, TrainingResult

if TYPE_CHECKING:
    from fedveil.client.parallel.link import Link
    from fedveil.config import DpConfig

__all__ = ["Together"]

_LONGEST_START = 300.0
_LONGEST_LAST_WORD = 2.0
_LONGEST_END = 10.0
_WHERE = "on another device of this client, "


class Together:
    """Trains under privacy on several devices at once, with the results of one.

    The noise is drawn here alone, once a step, and so are the batches.

    Parameters
    ----------
    devices : sequence of str
        At least two, the first of which the job's model is on.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = tuple(devices)

    def train(self, job: TrainingJob) -> TrainingResult:
        """Train the job's model in place; without privacy, on its own device alone."""
        if job.dp is None:
            return Alone().train(job)
        from fedveil.client.dp_training import train_private
        from fedveil.client.local_training import torch_seeded

        with torch_seeded(job.generator), self._linked(job, job.dp) as link:
            steps = train_private(
                *(job.model, job.task, job.examples, job.training, job.dp, job.generator),
                job.proximal_mu,
                link,
            )
        return TrainingResult(steps, None)

    @contextmanager
    def _linked(self, job: TrainingJob, dp: DpConfig) -> Iterator[Link]:
        from fedveil.client.local_training import TrainingError
        from fedveil.client.parallel.link import linked

        device = next(job.model.parameters()).device
        with (
            tempfile.TemporaryDirectory(prefix="fedveil-") as folder,
            self._members(job, dp, Path(folder)) as channels,
            linked(0, len(self._devices), device, Path(folder)) as link,
        ):
            try:
                yield link
                link.end()
            except RuntimeError as error:
                # torch's where another process is gone, which has said why before it went.
                for channel in channels:
                    if channel.poll(_LONGEST_LAST_WORD):
                        raise TrainingError(_WHERE + _said(channel)) from error
                raise

    @contextmanager
    def _members(self, job: TrainingJob, dp: DpConfig, folder: Path) -> Iterator[list[Connection]]:
        """Start the other processes, and end them at the end, whatever they do."""
        import torch
        from torch import multiprocessing

        from fedveil.client.local_training import TrainingError
        from fedveil.client.parallel.member import Share, take_part

        context = multiprocessing.get_context("spawn")
        processes: list[BaseProcess] = []
        channels: list[Connection] = []
        model = copy.deepcopy(job.model).cpu()
        try:
            for rank, device in enumerate(self._devices[1:], start=1):
                seed = int(torch.randint(2**62, (1,)))
                place = (rank, len(self._devices), device, folder, seed)
                share = Share(*place, model, job.task.loss, job.examples, job.training, dp)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=take_part, args=(share, theirs), daemon=True)
                processes.append(process)
                channels.append(ours)
                try:
                    process.start()
                except (pickle.PicklingError, AttributeError, TypeError) as error:
                    processes.pop()
                    raise TrainingError(
                        f"the loss or the model of task {job.task.name} cannot be handed to the "
                        f"process of another device ({error}); train on one device"
                    ) from None
                theirs.close()
            for channel in channels:
                _wait_until_ready(channel)
            yield channels
            for one in processes:
                one.join(_LONGEST_END)
        finally:
            for one in processes:
                one.kill()
                one.join()
                one.close()


def _wait_until_ready(channel: Connection) -> None:
    from fedveil.client.local_training import TrainingError
    from fedveil.client.parallel.member import READY

    said = _said(channel) if channel.poll(_LONGEST_START) else "the process did not start in time"
    if said != READY:
        raise TrainingError(_WHERE + said)


def _said(channel: Connection) -> str:
    try:
        return str(channel.recv())
    except EOFError:
        return "the process was ended"

"""What a model is run on is what was asked for, or one line says why not."""

from __future__ import annotations

import pytest
import torch

from fedveil.server.inference.devices import (
    Acceleration,
    find_devices,
    tensors_of,
    wipe_tensors,
)
from fedveil.server.inference.errors import ServeError


@pytest.mark.parametrize(
    ("dtype", "replicas", "says"),
    [
        ("fp64", None, "--dtype fp64: a type is one of fp32, bf16"),
        ("fp32", 0, "--replicas 0: is not between 1 and 64"),
        ("fp32", 65, "--replicas 65: is not between 1 and 64"),
    ],
)
def test_what_is_no_acceleration_is_refused(dtype: str, replicas: int | None, says: str) -> None:
    with pytest.raises(ServeError, match=says):
        Acceleration(dtype, replicas=replicas)


def test_the_cpu_takes_as_many_replicas_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu = torch.device("cpu")
    assert find_devices(Acceleration()) == (cpu,)
    assert find_devices(Acceleration(replicas=3)) == (cpu, cpu, cpu)


def test_a_replica_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ServeError, match="--replicas 3: a replica takes a GPU of its own"):
        find_devices(Acceleration(replicas=3))


@pytest.mark.gpu
def test_every_gpu_has_a_replica_unless_fewer_are_asked_for() -> None:
    there = torch.cuda.device_count()
    assert [device.index for device in find_devices(Acceleration())] == list(range(there))
    assert find_devices(Acceleration(replicas=1)) == (torch.device("cuda", 0),)


def test_wiping_overwrites_the_whole_memory_of_every_tensor() -> None:
    whole = torch.ones(10)
    module = torch.nn.BatchNorm1d(3)
    module.register_buffer("part", whole[2:4])
    wipe_tensors(tensors_of(module))
    assert not whole.any()
    assert not any(tensor.any() for tensor in module.state_dict().values())

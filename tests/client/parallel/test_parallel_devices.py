"""What a node's configuration may say of its devices."""

import pytest
from flwr.app import Context, RecordDict

from fedveil.client.parallel.devices import devices_of
from fedveil.client.requests import RequestError


def context(**settings: str | int) -> Context:
    return Context(1, 1, dict(settings), RecordDict(), {})


@pytest.mark.parametrize(
    ("said", "devices"),
    [
        ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        (" cuda:3 , cuda:1", ("cuda:3", "cuda:1")),
        ("cpu", ("cpu",)),
        ("cpu,cpu", ("cpu", "cpu")),
    ],
)
def test_devices_are_read(said: str, devices: tuple[str, ...]) -> None:
    assert devices_of(context(devices=said)) == devices


def test_none_are_said_by_default() -> None:
    assert devices_of(context()) == ()


@pytest.mark.parametrize(
    "said", ["", "cuda", "0,1", "cuda:0,cuda:0", "cuda:0,", "gpu:1", "cuda:0,cpu", 2]
)
def test_what_is_no_list_of_devices_is_refused(said: str | int) -> None:
    with pytest.raises(RequestError, match=r"devices=.* must be different GPUs"):
        devices_of(context(devices=said))

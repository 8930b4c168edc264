"""Which devices the owner of a client lets it train on together."""

from __future__ import annotations

import re

from flwr.app import Context

from fedveil.client.requests import RequestError

__all__ = ["devices_of"]

_DEVICE = re.compile(r"cpu|cuda:\d+")


def devices_of(context: Context) -> tuple[str, ...]:
    """Return the devices of this node, the first one the main one; none if it says none.

    Raises
    ------
    RequestError
        If they are no devices, not all GPUs or all "cpu", or a GPU stands there twice.
    """
    said = context.node_config.get("devices")
    if said is None:
        return ()
    devices = tuple(part.strip() for part in str(said).split(","))
    gpus = [device for device in devices if device != "cpu"]
    is_mixed = 0 < len(gpus) < len(devices)
    is_twice = len(set(gpus)) < len(gpus)
    if not all(_DEVICE.fullmatch(device) for device in devices) or is_mixed or is_twice:
        raise RequestError(
            f'this node\'s devices="{said}" must be different GPUs such as "cuda:0,cuda:1", or '
            '"cpu"'
        )
    return devices

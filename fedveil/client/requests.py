"""What a message of the server says, and what this node's own settings add to it."""

from __future__ import annotations

import math
from functools import lru_cache

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from pydantic import ValidationError

from fedveil import __version__
from fedveil.config import Config
from fedveil.errors import PublicError

__all__ = ["RequestError", "clip_norm_of", "config_of", "partition_of", "turn_of"]


class RequestError(PublicError):
    """The server's request, or this node's own settings, cannot be honoured."""


def config_of(message: Message) -> Config:
    """Return the settings that a message carries, checked.

    Raises
    ------
    RequestError
        If there are none, or this version does not read them.
    """
    try:
        return _parsed(str(message.content["config"]["config"]))
    except KeyError:
        raise RequestError("the server's message carries no configuration") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(
            f"the server's configuration is not one that Fedveil {__version__} reads "
            f"({where}: {first['msg']}); run the same version on both sides"
        ) from None


# A simulation reads the same settings once a client and round. They are frozen.
@lru_cache(maxsize=4)
def _parsed(text: str) -> Config:
    return Config.model_validate_json(text)


def turn_of(message: Message) -> tuple[int, int]:
    """Return the round and the attempt at it that a message is for.

    Raises
    ------
    RequestError
        If it does not say.
    """
    request = message.content["config"]
    assert not isinstance(request, ArrayRecord | MetricRecord)  # noqa: S101  # narrows the type
    try:
        return int(str(request["round"])), int(str(request["attempt"]))
    except (KeyError, ValueError):
        raise RequestError("the server's message does not say which round it is for") from None


def clip_norm_of(message: Message, config: Config) -> float:
    """Return the clip norm of the round that a message is for.

    Raises
    ------
    RequestError
        If it is no norm, or another than ``dp.clip_norm`` where that does not adapt.
    """
    request = message.content["config"]
    assert not isinstance(request, ArrayRecord | MetricRecord)  # noqa: S101  # narrows the type
    try:
        clip_norm = float(str(request.get("clip_norm", config.dp.clip_norm)))
    except ValueError:
        clip_norm = math.nan
    if not 0.0 < clip_norm < math.inf:
        raise RequestError("the server's message names a clip norm that is no positive number")
    if config.dp.adaptive is None and clip_norm != config.dp.clip_norm:
        raise RequestError(
            f"the server's message names a clip norm of {clip_norm:g}, and dp.clip_norm = "
            f"{config.dp.clip_norm:g} does not adapt"
        )
    return clip_norm


def partition_of(context: Context, config: Config) -> int:
    """Return which part of the data this node holds.

    Raises
    ------
    RequestError
        If its configuration does not say, or means another federation.
    """
    try:
        partition = int(context.node_config["partition-id"])
        total = int(context.node_config["num-partitions"])
    except (KeyError, ValueError):
        raise RequestError(
            'this node has no partition: start it with --node-config "partition-id=I '
            'num-partitions=N"'
        ) from None
    if total != config.federation.clients:
        raise RequestError(
            f"this node says num-partitions={total}, the run says federation.clients = "
            f"{config.federation.clients}; they must agree"
        )
    if not 0 <= partition < total:
        raise RequestError(f"partition-id={partition} must lie in 0 .. {total - 1}")
    return partition

"""The mod that puts a ClientApp under secure aggregation: its updates leave masked, or not at all.

Two lines put any app of Flower's Message API under it: ``ClientApp(mods=[secure_aggregation_mod])``
here, and `fedveil.strategies.secure_aggregation.SecureAggregation` around the strategy.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp.typing import ClientAppCallable, Mod

from fedveil.client.credentials import Credentials, credentials_of_node
from fedveil.envelope import content_digest, float_arrays, is_sealed, open_envelope, seal
from fedveil.secagg.client_round import ClientRound
from fedveil.secagg.client_session import ClientSession
from fedveil.secagg.encoding import Floats
from fedveil.secagg.errors import EncodingError, ProtocolError, SecAggError
from fedveil.secagg.messages import (
    UPDATE,
    ConfirmRequest,
    InputRequest,
    KeysRequest,
    Refusal,
    SetupRequest,
    UnmaskRequest,
)
from fedveil.secagg.wire import kind_of

__all__ = ["make_secure_aggregation_mod", "secure_aggregation_mod"]

_STATE = "fedveil.secagg"
_LONGEST_REASON = 400
_ASKS_FOR_RESULTS = {"train", "evaluate"}


def make_secure_aggregation_mod(
    credentials: Callable[[Context], Credentials],
    is_required: Callable[[Context], bool] = lambda _: True,
) -> Mod:
    """Return the mod.

    Parameters
    ----------
    credentials : callable
        Returns the credentials of the node whose context it is given.
    is_required : callable
        Whether that node refuses to train and to evaluate in clear.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if not is_sealed(message.content):
            category = message.metadata.message_type.split(".")[0]
            if category in _ASKS_FOR_RESULTS and is_required(context):
                raise ProtocolError(
                    "the server asks for a result in clear; this client answers under secure "
                    "aggregation only"
                )
            return call_next(message, context)
        try:
            return _answer(message, context, credentials(context), call_next)
        except SecAggError as error:
            reason = str(error)[:_LONGEST_REASON]
            refusal = Refusal(type(error).__name__, reason if reason.isprintable() else "refused")
            return Message(seal(refusal.encode()), reply_to=message)

    return mod


secure_aggregation_mod = make_secure_aggregation_mod(credentials_of_node)
"""The mod for deployed clients, whose identity and roster are files; see `credentials_of_node`."""


def _answer(
    message: Message, context: Context, credentials: Credentials, call_next: ClientAppCallable
) -> Message:
    data = open_envelope(message.content)
    session = ClientSession(
        credentials.identity, credentials.roster, credentials.floors, _memory(context)
    )
    match kind_of(data):
        case SetupRequest.KIND:
            answer = session.advertise(data)
        case KeysRequest.KIND:
            answer = session.share(data)
        case InputRequest.KIND:
            round_ = session.begin(data, content_digest(message.content))
            return _train(message, context, round_, call_next)
        case ConfirmRequest.KIND:
            answer = session.resume().confirm(data, credentials.identity)
        case UnmaskRequest.KIND:
            answer = session.resume().unmask(data)
        case kind:
            raise ProtocolError(f"a client does not answer messages of kind {kind}")
    return Message(seal(answer), reply_to=message)


def _train(
    message: Message, context: Context, round_: ClientRound, call_next: ClientAppCallable
) -> Message:
    """Let the app work, and send what it answers masked."""
    header = round_.header
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    weight, figures = _figures(reply, header.weight_key)
    update: list[Floats] = []
    base: list[Floats] = []
    if header.purpose == UPDATE:
        update, base = _arrays(message, reply)
    answer, vector = round_.mask(update, base, weight, figures)
    # The names of the figures go in clear, the figures do not.
    return Message(seal(answer, vector=vector), reply_to=message)


def _figures(reply: Message, weight_key: str) -> tuple[float, dict[str, float]]:
    """Return the reply's weight, and its figures times that weight."""
    records = list(reply.content.metric_records.values())
    if len(records) != 1:
        raise EncodingError(f"the app's reply must hold one MetricRecord, not {len(records)}")
    metrics: MetricRecord = records[0]
    weight = metrics.get(weight_key, None) if weight_key else 1.0
    if not isinstance(weight, int | float):
        raise EncodingError(f"the app's metrics hold no number {weight_key!r} to weigh them by")
    figures = {}
    for name, value in metrics.items():
        if name == weight_key:
            continue
        if not isinstance(value, int | float):
            raise EncodingError(f"the metric {name!r} is a list; only numbers can be summed")
        figures[name] = weight * value
    return float(weight), figures


def _arrays(message: Message, reply: Message) -> tuple[list[Floats], list[Floats]]:
    """Return the app's arrays and the global ones that they started from."""
    asked, answered = (
        list(content.array_records.values()) for content in (message.content, reply.content)
    )
    if len(asked) != 1 or len(answered) != 1:
        raise EncodingError(
            f"request and reply must hold one ArrayRecord each, not {len(asked)} and "
            f"{len(answered)}"
        )
    start, end = asked[0], answered[0]
    if list(start) != list(end):
        raise EncodingError(f"the app's arrays are {list(end)}, the model's are {list(start)}")
    return _numpy(end, start), _numpy(start, start)


def _numpy(arrays: ArrayRecord, model: ArrayRecord) -> list[Floats]:
    found = []
    for name in float_arrays(model):
        array = arrays[name].numpy()
        expected = model[name]
        if array.dtype != np.dtype(expected.dtype) or array.shape != tuple(expected.shape):
            raise EncodingError(
                f"{name} is {array.dtype} {array.shape}, the model's is {expected.dtype} "
                f"{tuple(expected.shape)}"
            )
        found.append(array)
    return found


def _memory(context: Context) -> MutableMapping[str, bytes]:
    """Return the session's memory: Flower keeps the context between messages, in this node."""
    if _STATE not in context.state:
        context.state[_STATE] = ConfigRecord()
    return cast(MutableMapping[str, bytes], context.state.config_records[_STATE])

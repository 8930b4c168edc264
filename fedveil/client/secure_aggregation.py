"""The mod that puts a ClientApp under secure aggregation: its updates leave masked, or not at all.

Two lines put any app of Flower's Message API under it: ``ClientApp(mods=[secure_aggregation_mod])``
here, and `fedveil.strategies.secure_aggregation.SecureAggregation` around the strategy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from dataclasses import asdict
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp.typing import ClientAppCallable, Mod
from numpy.typing import NDArray

from fedveil.client.credentials import Credentials, credentials_of_node
from fedveil.envelope import (
    ROUND_FACTS,
    content_digest,
    environment_digest,
    float_arrays,
    is_sealed,
    open_envelope,
    seal,
    values_of,
)
from fedveil.errors import FedveilError, PublicError
from fedveil.secagg.client_round import ClientRound
from fedveil.secagg.client_session import ClientSession
from fedveil.secagg.encoding import Floats
from fedveil.secagg.errors import EncodingError, ProtocolError, RosterError, SecAggError
from fedveil.secagg.messages import (
    FIGURES,
    INTEGERS,
    UPDATE,
    ConfirmRequest,
    InputRequest,
    KeysRequest,
    Refusal,
    SetupRequest,
    UnmaskRequest,
)
from fedveil.secagg.wire import kind_of

__all__ = [
    "AppDefectError",
    "AppFailedError",
    "make_secure_aggregation_mod",
    "secure_aggregation_mod",
]

_STATE = "fedveil.secagg"
_LONGEST_REASON = 400
_HIDDEN = "its app failed; that client's own log says why"
_OPEN = {"query"}
"""Types of message that the mod lets pass outside of the protocol: nobody trains or evaluates."""
_TYPES = {UPDATE: "train", INTEGERS: "train", FIGURES: "evaluate"}

_log = logging.getLogger(__name__)


class AppFailedError(FedveilError):
    """The app failed; its own words stay on the client, since they may tell of its records."""


class AppDefectError(Exception):
    """The same of an error that no user can repair, which keeps its traceback on the client."""


def make_secure_aggregation_mod(
    credentials: Callable[[Context], Credentials],
    is_required: Callable[[Context], bool] = lambda _: True,
) -> Mod:
    """Return the mod.

    The app finds what is sure of the sum in the record `fedveil.envelope.ROUND_FACTS`, as
    `fedveil.secagg.client_round.RoundFacts` has it; without the protocol there is none.

    Parameters
    ----------
    credentials : callable
        Returns the credentials of the node whose context it is given.
    is_required : callable
        Whether that node refuses to answer in clear whatever is no query.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        # The app takes it for this client's own knowledge, so it is never the server's.
        message.content.pop(ROUND_FACTS, None)
        if not is_sealed(message.content):
            category = message.metadata.message_type.split(".")[0]
            if category not in _OPEN and is_required(context):
                raise ProtocolError(
                    "the server asks for a result in clear; this client answers under secure "
                    "aggregation only"
                )
            return _in_public_words(message, context, call_next)
        try:
            return _answer(message, context, credentials(context), call_next)
        except SecAggError as error:
            _log.warning("this client refuses: %s", error)
            reason = str(error)[:_LONGEST_REASON]
            refusal = Refusal(
                code=type(error).__name__,
                reason=reason if reason.isprintable() else "refused",
                member=error.member if isinstance(error, RosterError) else "",
            )
            return Message(seal(refusal.encode()), reply_to=message)

    return mod


secure_aggregation_mod = make_secure_aggregation_mod(credentials_of_node)
"""The mod for deployed clients, whose identity and roster are files; see `credentials_of_node`."""


def _answer(
    message: Message, context: Context, credentials: Credentials, call_next: ClientAppCallable
) -> Message:
    data = open_envelope(message.content)
    session = ClientSession(
        credentials.identity,
        credentials.roster,
        credentials.floors,
        _memory(context),
        environment_digest(context.run_id, context.run_config),
    )
    match kind_of(data):
        case SetupRequest.KIND:
            answer = session.advertise(data)
        case KeysRequest.KIND:
            answer = session.share(data)
        case InputRequest.KIND:
            message_type = message.metadata.message_type
            round_ = session.begin(data, content_digest(message.content, message_type))
            expected = _TYPES[round_.header.purpose]
            if message_type.split(".")[0] != expected:
                raise ProtocolError(
                    f"a round to sum {round_.header.purpose}s must ask to {expected}, not for "
                    f"{message_type!r}"
                )
            facts = asdict(round_.facts(credentials.floors))
            message.content[ROUND_FACTS] = ConfigRecord(facts)
            return _train(message, context, round_, call_next)
        case ConfirmRequest.KIND:
            answer = session.resume().confirm(data)
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
    reply = _run_app(message, context, call_next)
    weight, figures = _figures(reply, header.weight_key)
    if header.purpose == INTEGERS:
        if weight != 1.0:
            raise EncodingError("where integers are summed every client weighs 1")
        answer, vector = round_.mask_integers(_integers(reply), figures)
    else:
        update, base = _arrays(message, reply) if header.purpose == UPDATE else ([], [])
        answer, vector = round_.mask(update, base, weight, figures)
    # The names of the figures go in clear, the figures do not.
    return Message(seal(answer, vector=vector), reply_to=message)


def _in_public_words(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Run the app on what is not sealed; no library's words on a record leave the client."""
    try:
        return call_next(message, context)
    except FedveilError:
        raise
    except Exception as error:
        # Flower logs the cause here, and sends the words of this error alone.
        raise AppDefectError(_HIDDEN) from error


def _run_app(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Run the app; of what it raises only what is public may leave the client."""
    try:
        reply = call_next(message, context)
    except PublicError:
        raise
    except FedveilError as error:
        _log.error("the app failed: %s", error)  # one line, as for any mistake
        raise AppFailedError(_HIDDEN) from None
    except Exception as error:
        # Flower logs the cause here, and sends the words of this error alone.
        raise AppDefectError(_HIDDEN) from error
    if reply.has_error():
        _log.error("the app answered with an error: %s", reply.error.reason)
        raise AppFailedError(_HIDDEN)
    return reply


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


def _integers(reply: Message) -> NDArray[np.int64]:
    """Return the one array of integers that the app answers with."""
    arrays = [array for record in reply.content.array_records.values() for array in record.values()]
    if len(arrays) != 1 or arrays[0].dtype != "int64":
        raise EncodingError(
            "where integers are summed the app's reply must hold one array of int64, and nothing "
            f"of a model; it holds {[array.dtype for array in arrays]}"
        )
    return cast(NDArray[np.int64], values_of(arrays[0]))


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
    found: list[Floats] = []
    for name in float_arrays(model):
        expected = model[name]
        try:
            values = values_of(arrays[name])
        except (TypeError, ValueError) as error:
            raise EncodingError(f"{name} cannot be read as numbers") from error
        if values.dtype != np.dtype(expected.dtype) or values.shape != tuple(expected.shape):
            raise EncodingError(
                f"{name} is {values.dtype} {values.shape}, the model's is {expected.dtype} "
                f"{tuple(expected.shape)}"
            )
        found.append(cast(Floats, values))
    return found


def _memory(context: Context) -> MutableMapping[str, bytes]:
    """Return the session's memory: Flower keeps the context between messages, in this node.

    Flower shares a context among the runs of a series, so that the run is in the name.
    """
    name = f"{_STATE}.{context.run_id}"
    record = context.state.get(name)
    if not isinstance(record, ConfigRecord):
        record = context.state[name] = ConfigRecord()
    return cast(MutableMapping[str, bytes], record)

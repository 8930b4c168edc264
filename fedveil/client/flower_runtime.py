"""What the guarded runner needs of a SuperNode beyond Flower's public interface, in one place."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from flwr.app import Context, Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SubStatus
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient

from fedveil.client.runner.pace import Pace
from fedveil.errors import FedveilError
from fedveil.flower import (
    FIRST_PULL_PAUSE,
    LONGEST_PULL_PAUSE,
    pull_impatiently,
    set_identity,
    set_message_id,
)

__all__ = [
    "ClaimedTask",
    "FlowerVersionError",
    "OpenedTask",
    "SuperNodeGoneError",
    "TaskQueue",
    "check_flower_version",
    "run_supernode",
]

_TESTED = (1, 41)
"""Flower's version that this module was tested with; the range in `pyproject.toml` is the same."""

_COMPONENT = "flwr-clientapp"
_PATIENCE = 30.0
_QUEUE_PATIENCE = 5.0
_MESSAGE_WITHIN = 5.0
_MESSAGE_LOOK = 0.02
_CLAIM = frozenset({"/flwr.proto.Runtime/AcquireTask"})


class FlowerVersionError(FedveilError):
    """Another version of Flower is installed than the runner was tested with."""


class SuperNodeGoneError(FedveilError):
    """The SuperNode does not answer, or no longer knows the task."""


def check_flower_version() -> None:
    """Refuse a Flower whose inside may differ from what this module uses.

    Raises
    ------
    FlowerVersionError
        With the version that is installed and the range that was tested.
    """
    installed = importlib.metadata.version("flwr")
    low, next_ = (".".join(map(str, v)) for v in (_TESTED, (_TESTED[0], _TESTED[1] + 1)))
    if tuple(installed.split(".")[:2]) != tuple(str(part) for part in _TESTED):
        raise FlowerVersionError(
            f"Flower {installed} is installed, and the guarded runner uses Flower's inside, tested "
            f"with {low} alone; run: pip install 'flwr>={low},<{next_}'"
        )


class TaskQueue:
    """The tasks of a SuperNode that was started with ``--isolation process``.

    Parameters
    ----------
    address : str
        ``127.0.0.1:PORT`` of the SuperNode's runtime interface.
    secret : bytes
        What it was started with as its secret; nobody claims a task without.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self._client = RuntimeHttpClient(
            f"http://{address}",
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_CLAIM),
                _OnceMore(),
            ],
            verify=False,
            timeout=_QUEUE_PATIENCE,
        )

    def claim(self) -> str | None:
        """Claim the next task and return its token; None where there is none.

        Raises
        ------
        SuperNodeGoneError
            If the SuperNode does not answer.
        """
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        with _in_our_words():
            response = self._client.AcquireTask(request)
        return response.token or None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


@dataclass(frozen=True)
class OpenedTask:
    """A claimed task, its message not yet loaded.

    Parameters
    ----------
    envelope : bytes
        The message without its content, serialised: enough to answer it with an error.
    context : Context
        The node's context of the run.
    tree : ObjectTree
        Names of the parts of the content.
    what : str
        Kind of the message and what it belongs to, for a log.
    run : str
        Number of the run.
    bundle : str
        SHA-256 of the bundle of code that came along, in hexadecimal; empty if none did.
    """

    envelope: bytes
    context: Context
    tree: ObjectTree
    what: str
    run: str
    bundle: str


class ClaimedTask:
    """One claimed task after the other, over one connection.

    The bundle of code that comes with a task is hashed, for the record, and never unpacked.

    Parameters
    ----------
    address : str
        ``127.0.0.1:PORT`` of the SuperNode's runtime interface.
    """

    def __init__(self, address: str) -> None:
        self._token = _Token()
        self._client = RuntimeHttpClient(
            f"http://{address}",
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name=_COMPONENT),
                self._token,
                _OnceMore(),
            ],
            verify=False,
            timeout=_PATIENCE,
        )

    def use(self, token: str) -> None:
        """Turn to the task of a token."""
        self._token.value = token

    def open(self) -> OpenedTask:
        """Take the task up, and return what is known of its message before its content.

        Raises
        ------
        SuperNodeGoneError
            If the SuperNode does not answer, does not know the task, or has no message for it.
        """
        with _in_our_words():
            task = self._client.PullTaskInput(PullTaskInputRequest())
            found = self._pull_message()
        set_identity(task.run.run_id, task.context.node_id, task.task_id)
        message = found.messages_list[0]
        group = message.metadata.group_id
        return OpenedTask(
            message.SerializeToString(),
            context_from_proto(task.context),
            found.message_object_trees[0],
            f"{message.metadata.message_type} of run {task.run.run_id}"
            + (f", round {group}" if group else ""),
            str(task.run.run_id),
            hashlib.sha256(task.fab.content).hexdigest() if task.fab.content else "",
        )

    def load(self, opened: OpenedTask) -> Message:
        """Return the message of an opened task with its content.

        Raises
        ------
        SuperNodeGoneError
            If the SuperNode does not answer.
        """
        node, run_id = Node(node_id=opened.context.node_id), opened.context.run_id
        with _in_our_words():
            message = pull_and_inflate_object_from_tree(
                opened.tree,
                make_pull_object_fn_protobuf(self._client.PullObject, node, run_id),
                make_confirm_message_received_fn_protobuf(
                    self._client.ConfirmMessageReceived, node, run_id
                ),
                return_type=Message,
                # The SuperNode may be downloading it still; the owner's limit ends that.
                max_tries_per_object=None,
                initial_backoff=FIRST_PULL_PAUSE,
                backoff_cap=LONGEST_PULL_PAUSE,
            )
        # A message that travelled does not hold its own id.
        set_message_id(message, opened.tree.object_id)
        return message

    def answer(self, reply: Message, context: Context) -> None:
        """Send the reply of the app, and the state that it leaves for the next message.

        Raises
        ------
        SuperNodeGoneError
            If the SuperNode does not take it.
        """
        self._push(reply, context.node_id, context.run_id)
        self._finish(context, SubStatus.COMPLETED, "")

    def fail(self, envelope: bytes, code: int, reason: str) -> None:
        """Answer with an error; the state stays as it was before the message.

        Raises
        ------
        SuperNodeGoneError
            If the SuperNode does not take it.
        """
        message = message_from_proto(ProtoMessage.FromString(envelope))
        meta = message.metadata
        set_identity(meta.run_id, meta.dst_node_id)
        reply = Message(Error(code, reason), reply_to=message)
        self._push(reply, meta.dst_node_id, meta.run_id)
        self._finish(None, SubStatus.FAILED, reason)

    def keep(self) -> bool:
        """Tell the SuperNode that the task is being worked on; return whether it still wants it.

        A SuperNode that hears nothing for a minute answers with an error in our place.
        """
        try:
            with _in_our_words():
                return self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
        except SuperNodeGoneError:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _pull_message(self) -> PullAppMessagesResponse:
        # A SuperNode gives a task out a moment before it has stored the message.
        deadline = time.monotonic() + _MESSAGE_WITHIN
        while True:
            found = self._client.PullMessages(PullAppMessagesRequest())
            if found.messages_list:
                return found
            if time.monotonic() >= deadline:
                raise SuperNodeGoneError("the SuperNode has no message for a task that it gave out")
            time.sleep(_MESSAGE_LOOK)

    def _push(self, reply: Message, node_id: int, run_id: int) -> None:
        set_message_id(reply, reply.object_id)
        with _in_our_words(), no_object_id_recompute():
            pushed = self._client.PushMessages(
                PushAppMessagesRequest(
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                )
            )
            push_objects(
                get_all_nested_objects(reply),
                make_push_object_fn_protobuf(
                    self._client.PushObject,
                    Node(node_id=node_id),
                    run_id=run_id,
                    session_id=pushed.session_id,
                ),
                object_ids_to_push=set(pushed.objects_to_push),
            )

    def _finish(self, context: Context | None, status: str, details: str) -> None:
        request = PushTaskOutputRequest(
            context=None if context is None else context_to_proto(context),
            sub_status=status,
            details=details,
        )
        with _in_our_words():
            self._client.PushTaskOutput(request)


class _OnceMore:
    """Sends a request once more where its connection was closed at that moment.

    A SuperNode closes a connection after five idle seconds, and until then it is used again: a
    request that was on its way met nobody. One that is gone refuses the second connection.
    """

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        try:
            return call_next(context)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            return call_next(context)


class _Token:
    """Adds the token of the task at hand to each request."""

    def __init__(self) -> None:
        self.value = ""

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        return RuntimeTokenHttpInterceptor(self.value).intercept(context, call_next)


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, ObjectPullError, ObjectPushError) as error:
        raise SuperNodeGoneError(f"the SuperNode of this client: {error}") from None


_LOOK_FOR_MESSAGES = 1.0
"""Pauses from here on are for messages of the server, shorter ones for replies of this machine."""

_HEARTBEAT = 15.0
"""Seconds, in the place of Flower's 30: a node that was killed is gone when two are missing."""


def run_supernode(arguments: list[str]) -> None:
    """Be a `flower-supernode`, with pauses between its looks that follow the federation's pace.

    Flower's own sleeps three seconds whenever there is no message, and half a second between
    looks for a reply. Here the first is from 50 ms to three seconds, a quarter of the time that
    nothing came; the second is 20 ms, and asks this process alone. A part of a message that is
    not there yet is asked for again sooner, too.

    A node that was killed is not admitted anew before the SuperLink takes it for gone: half of
    Flower's interval between heartbeats halves that time.

    Parameters
    ----------
    arguments : list of str
        As `flower-supernode` takes them.
    """
    import flwr.supercore.heartbeat as beating
    import flwr.supernode.fleet_http_connection as connection
    import flwr.supernode.start_client_internal as loop
    from flwr.supernode.cli import flower_supernode

    # All that the loop uses of the module is `sleep`.
    vars(loop)["time"] = _PacedTime()
    vars(loop)["pull_objects"] = pull_impatiently
    # When the next is sent, and when the SuperLink is told to expect it.
    for module in (beating, connection):
        vars(module)["HEARTBEAT_DEFAULT_INTERVAL"] = _HEARTBEAT
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()


class _PacedTime:
    def __init__(self) -> None:
        self._messages = Pace(0.05, 3.0)

    def sleep(self, seconds: float) -> None:
        if seconds >= _LOOK_FOR_MESSAGES:
            time.sleep(self._messages.pause())
        else:
            # It waits for the reply to a message, so one has come.
            self._messages.came()
            time.sleep(0.02)

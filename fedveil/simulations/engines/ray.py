"""An engine that runs clients on the machines of a Ray cluster, one client at a time on a core."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message

from fedveil.simulations.engines.errors import ClientDefectError, EngineError
from fedveil.simulations.engines.hosting import Answer, Host, levels_of_logs
from fedveil.simulations.engines.interface import AppMaker, Work

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

__all__ = ["RayEngine"]

_LONGEST_START = 120.0
_LONGEST_KNOCK = 10.0
_LONGEST_CLEARING = 5.0
_LOOK_AGAIN = 0.1


class RayEngine:
    """Sends each message to an actor that is free, with the state of its node; both come back.

    The cluster is one that runs already, found as Ray finds it: ``RAY_ADDRESS``, or the one that
    was started on this machine. Ray starts an actor on whichever machine has a core for it.

    Parameters
    ----------
    clients : AppMaker
        Makes the app, in every actor.
    most : int
        More actors than this are not started.
    device : str
        As ``training.device``. Where the cluster has GPUs, each actor takes one of its own; with
        ``cpu``, none.
    shared : Path, optional
        A folder that every machine must see, as the clients' ledgers lie there.

    Raises
    ------
    EngineError
        If Ray is not installed, no cluster is found, it has nothing free, or one of its machines
        does not see the folder, or has another Fedveil or none.
    """

    def __init__(
        self, clients: AppMaker, most: int, *, device: str = "auto", shared: Path | None = None
    ) -> None:
        self._actors: list[ActorHandle[Member]] = []
        _join_cluster()
        try:
            on_gpus = _has_gpus() and device != "cpu"
            self._actors = _start(clients, _room(most, on_gpus), on_gpus)
            self.machines = self._check(shared)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """How many clients run at a time."""
        return len(self._actors)

    def run(self, work: Sequence[Work]) -> Iterator[Message]:
        """Answer messages, and yield each reply when it is there.

        Raises
        ------
        EngineError
            If an actor, or its machine, has died.
        ClientDefectError
            If a client failed in a way that no user can repair.
        """
        import ray

        free = deque(self._actors)
        left = deque(work)
        asked: dict[ObjectRef[Answer], tuple[ActorHandle[Member], Context]] = {}
        try:
            while left or asked:
                while left and free:
                    actor, (message, context) = free.popleft(), left.popleft()
                    asked[actor.run.remote(message, context)] = actor, context
                (done,), _ = ray.wait(list(asked))
                found = ray.get(done)
                actor, context = asked.pop(done)
                free.append(actor)
                if isinstance(found, str):
                    raise ClientDefectError(f"on a machine of the Ray cluster:\n{found}")
                reply, context.state = found
                yield reply
        except ray.exceptions.RayError as error:
            raise EngineError(
                "the Ray cluster has lost a machine, or a process that ran clients "
                f"({type(error).__name__}); what was finished stands. Resume the run"
            ) from None
        finally:
            for other in asked:
                ray.cancel(other)

    def close(self) -> None:
        """End the actors, at work or not, and leave the cluster, which runs on."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        ray.shutdown()

    def _check(self, shared: Path | None) -> int:
        """Return how many machines there are, all of which see the folder."""
        import ray

        marker = None
        if shared is not None:
            # A run folder must not be there before its run, so that it may be a folder above.
            there = next(one for one in (shared, *shared.parents) if one.is_dir())
            marker = there / f".seen-{secrets.token_hex(8)}"
            marker.touch()
        try:
            told = ray.get([a.look.remote(marker) for a in self._actors], timeout=_LONGEST_START)
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise EngineError(
                f"a machine of the Ray cluster cannot run clients: {lines[-1]}; it needs the same "
                "Python and Fedveil as this one, and free cores"
            ) from None
        finally:
            if marker is not None:
                marker.unlink()
        for machine, sees in told:
            if not sees:
                raise EngineError(
                    f"{machine} of the Ray cluster does not see {shared}, where ledgers lie; put "
                    "the run folder, or --ledgers, on a file system that all its machines share"
                )
        return len({machine for machine, _ in told})


class Member:
    """A host of clients in a Ray actor."""

    def __init__(self, clients: AppMaker, levels: dict[str, int]) -> None:
        self._host = Host(clients, levels)

    def look(self, path: Path | None) -> tuple[str, bool]:
        """Return which machine this is, and whether it sees a file."""
        import ray

        return ray.util.get_node_ip_address(), path is None or path.exists()

    def run(self, message: Message, context: Context) -> Answer:
        """Answer a message."""
        return self._host.run(message, context)


def _join_cluster() -> None:
    # Ray would tell its makers that it is used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise EngineError(
            '--engine ray needs Ray on every machine: pip install "fedveil[ray]"'
        ) from None
    # Ray takes this signal for itself.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _knock(os.environ.get("RAY_ADDRESS", ""))
        ray.init(address="auto", logging_level="error", log_to_driver=False)
    except OSError:
        raise EngineError(
            "no Ray cluster is found: start one with `ray start --head` here, and `ray start "
            "--address HOST:6379` on the other machines, or say RAY_ADDRESS; on one machine take "
            "--engine processes"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, handler)


def _knock(address: str) -> None:
    """Raise OSError at once where Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_LONGEST_KNOCK).close()


def _has_gpus() -> bool:
    import ray

    return bool(ray.cluster_resources().get("GPU", 0))


def _room(most: int, on_gpus: bool) -> int:
    """Return how many actors the cluster has room for, `most` at most.

    What an engine before this one has left is free a moment later only.
    """
    import ray

    wanted = min(most, _actors_on(ray.cluster_resources(), on_gpus))
    deadline = time.monotonic() + _LONGEST_CLEARING
    while (room := _actors_on(ray.available_resources(), on_gpus)) < wanted:
        if time.monotonic() > deadline:
            break
        time.sleep(_LOOK_AGAIN)
    if not room:
        raise EngineError(
            f"the Ray cluster has no free {'GPU and core' if on_gpus else 'core'} for a client; "
            "see `ray status`"
        )
    return min(room, most)


def _actors_on(resources: Mapping[str, float], on_gpus: bool) -> int:
    cores = resources.get("CPU", 0.0)
    return int(min(cores, resources.get("GPU", 0.0)) if on_gpus else cores)


def _start(clients: AppMaker, count: int, on_gpus: bool) -> list[ActorHandle[Member]]:
    import ray

    made = ray.remote(Member).options(num_cpus=1, num_gpus=1 if on_gpus else 0)
    return [made.remote(clients, levels_of_logs()) for _ in range(count)]

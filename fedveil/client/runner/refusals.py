"""Why a SuperLink did not admit a SuperNode, in one line, from what the SuperNode printed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Admission", "Refusal", "refusal_in"]

_FAILED = "Failed to initialize the connection to the SuperLink."
_UNTRUSTED = re.compile(r"certificate verify failed: ([^\n(]*)")
_NOT_REGISTERED = "[code: 2004]"
_KEY_WANTED = "[code: 2001]"
_HUNG_UP = "[SSL: UNEXPECTED_EOF_WHILE_READING]"


@dataclass(frozen=True)
class Refusal:
    """Why a node was not admitted.

    Parameters
    ----------
    text : str
        One line for whoever runs the node.
    for_now : str
        The line for as long as it may be admitted yet with nothing changed here; empty if it
        may not.
    """

    text: str
    for_now: str = ""


class Admission:
    """How long a node that is refused waits to be admitted: so long from the first such refusal.

    Parameters
    ----------
    within : float
        Seconds. A node may have waited for its server far longer before.
    clock : callable
        Returns the time in seconds.
    """

    def __init__(self, within: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._within = within
        self._clock = clock
        self._first: dict[Refusal, float] = {}

    def is_waited_for(self, refusal: Refusal) -> bool:
        """Return whether the node tries again after this refusal."""
        now = self._clock()
        first = self._first.setdefault(refusal, now)
        return bool(refusal.for_now) and now - first < self._within


def refusal_in(printed: str, superlink: str) -> Refusal | None:
    """Return why a node was not admitted; None if what it printed does not say so.

    Parameters
    ----------
    printed : str
        The last lines of `flower-supernode`, version 1.41.
    superlink : str
        ``HOST:PORT`` that it dialled.
    """
    _, found, after = printed.rpartition(_FAILED)
    if not found:
        return None
    if untrusted := _UNTRUSTED.search(after):
        return Refusal(f"SuperLink {superlink}: {_not_trusted(untrusted[1].strip().rstrip('.'))}")
    if _NOT_REGISTERED in after:
        text = (
            f"the SuperLink {superlink} does not admit this node: its key is not registered there, "
            "or was revoked; ask the coordinator to provision this party and to start the server "
            "from the new kit (or the node runs already: one that was killed counts as running for "
            "up to a minute)"
        )
        return Refusal(text, f"the SuperLink {superlink} does not know this node's key yet")
    if _KEY_WANTED in after:
        return Refusal(
            f"the SuperLink {superlink} admits only nodes that prove who they are, and this one "
            "has no key; start it from its kit"
        )
    if "[SSL:" in after:
        text = (
            f"the SuperLink {superlink} does not speak TLS as this node does "
            f"({_reason(after)}); start it with `fedveil server KIT`, and compare the address"
        )
        # As a proxy does whose SuperLink is not there yet.
        hung_up = f"whoever answers at {superlink} hung up" if _HUNG_UP in after else ""
        return Refusal(text, hung_up)
    return Refusal(f"the SuperLink {superlink} does not admit this node: {_reason(after)}")


def _not_trusted(why: str) -> str:
    if "expired" in why:
        return (
            "the server's certificate has expired; the coordinator renews it with "
            "`fedveil provision` and starts the server again"
        )
    if "mismatch" in why:
        return (
            f"the server's certificate is for another address ({why}); name this one under "
            "`hosts` of the coordinator in federation.toml and provision again"
        )
    return (
        f"the server's certificate is not signed by this kit's authority ({why}); whoever answers "
        "there is another federation, or this kit is from one: compare ca.pem"
    )


def _reason(after: str) -> str:
    lines = [line.strip() for line in after.strip().splitlines() if line.strip()]
    return lines[0] if lines else "it does not say why"

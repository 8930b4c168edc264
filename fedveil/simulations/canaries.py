"""Canaries in the training of simulated clients: records whose gradients an auditor chooses."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedveil.config import DpConfig
from fedveil.privacy.audit.guesses import AuditError
from fedveil.privacy.audit.result import AttackName
from fedveil.privacy.randomness import SecureGenerator
from fedveil.simulations.defects import Defect, build_in
from fedveil.tasks.base import Examples

__all__ = ["Canaries"]

_LOUDNESS = 10.0
"""Norm of a canary's gradient over the clip norm: without clipping it shows."""


@dataclass(eq=False)
class _Client:
    """The canaries of one client: their coins, their signs, and what was seen of them.

    `known` is what the other records of the batch add to the sum there: the attacker of
    differential privacy knows every other record, and which of them were drawn.
    """

    examples: Examples
    coins: NDArray[np.bool_]
    signs: NDArray[np.float64]
    seen: NDArray[np.float64]
    known: NDArray[np.float64]
    rounds: int = 0
    steps: int = 0
    included: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.included = np.flatnonzero(self.coins)

    @property
    def turn(self) -> float:
        """The sign of this step; noise that repeats over steps or rounds cancels."""
        return 1.0 if (self.rounds + self.steps) % 2 == 0 else -1.0


class Canaries:
    """A probe of DP training (`fedveil.client.probing.Probe`) that puts canaries in by fair coins.

    A canary is a record of its client like any other: it is drawn into batches at the same rate,
    and its gradient is clipped by the same code. Only the gradient itself is chosen: it lies along
    one coordinate of the model that no other canary of the client uses (a Dirac canary, the
    strongest attacker of DP-SGD: Steinke et al. 2023, section 6), ten times as long as the
    clip norm, and turns its sign from step to step and round to round.

    Parameters
    ----------
    parameters : int
        Parameters of the model that are trained.
    wanted : int
        Canaries a client; at most `parameters` are used.
    clip_norm : float
        As claimed.
    key : bytes
        Secret that coins, signs and coordinates follow from.
    defect : str, optional
        Built into every client's training.

    Raises
    ------
    AuditError
        If no canaries are wanted.
    """

    def __init__(
        self,
        parameters: int,
        wanted: int,
        clip_norm: float,
        key: bytes,
        defect: Defect | None = None,
    ) -> None:
        if wanted < 1:
            raise AuditError(f"an audit needs canaries, not {wanted} a client")
        order = _generator(key, b"coordinates").permutation(parameters)
        self._coordinates = np.sort(order[:wanted])
        self._clip_norm = clip_norm
        self._key = key
        self._defect = defect
        self._clients: dict[int, _Client] = {}
        self._current: _Client | None = None

    @property
    def clients(self) -> int:
        """How many clients have trained."""
        return len(self._clients)

    def begin(
        self, examples: Examples, dp: DpConfig, generator: SecureGenerator
    ) -> tuple[Examples, DpConfig, SecureGenerator]:
        """Add the canaries whose coin fell so to a client's records."""
        # A task hands out the same object every round, which stays alive in `_Client`.
        client = self._clients.get(id(examples))
        if client is None:
            client = self._clients[id(examples)] = self._new_client(examples)
        client.rounds += 1
        client.steps = 0
        self._current = client
        if self._defect is not None:
            number = list(self._clients).index(id(examples))
            dp, generator = build_in(self._defect, dp, generator, number, client.rounds)
        return _with_blank_records(examples, len(client.included)), dp, generator

    def before_clipping(self, gradients: Sequence[Tensor], records: NDArray[np.int64]) -> None:
        """Give the canaries of a batch their gradients."""
        client = self._training()
        rows = np.flatnonzero(records >= len(client.examples))
        canaries = client.included[records[rows] - len(client.examples)]
        size = _LOUDNESS * self._clip_norm * client.turn
        at = self._coordinates[canaries]
        shapes = [tuple(g.shape[1:]) for g in gradients]
        client.known += self._known(gradients, shapes, rows)
        for gradient, shape, (start, end) in zip(gradients, shapes, _spans(shapes), strict=True):
            gradient[torch.from_numpy(rows)] = 0.0
            here = (start <= at) & (at < end)
            place = np.unravel_index(at[here] - start, shape)
            index = tuple(torch.from_numpy(axis) for axis in (rows[here], *place))
            values = torch.from_numpy(size * client.signs[canaries[here]])
            gradient[index] = values.to(gradient)

    def after_noise(self, sums: Sequence[Tensor]) -> None:
        """Add up what was released along each canary's gradient."""
        client = self._training()
        spans = _spans([tuple(s.shape) for s in sums])
        for released, (start, end) in zip(sums, spans, strict=True):
            here = (start <= self._coordinates) & (self._coordinates < end)
            values = released.detach().flatten().cpu().double().numpy()
            unknown = values[self._coordinates[here] - start] - client.known[here]
            client.seen[here] += client.turn * unknown
        client.known[:] = 0.0
        client.steps += 1

    def coins(self) -> NDArray[np.bool_]:
        """Return all coins, shape (clients * canaries a client,)."""
        return np.concatenate([c.coins for c in self._in_order()])

    def scores(self) -> dict[AttackName, NDArray[np.float64]]:
        """Return each attack's score of every canary, in the order of `coins`."""
        signs = np.stack([c.signs for c in self._in_order()])
        seen = np.stack([c.seen for c in self._in_order()])
        scores: dict[AttackName, NDArray[np.float64]] = {"own": (signs * seen).ravel()}
        others = len(seen) - 1
        if others:
            mean = (seen.sum(axis=0) - seen) / others
            scores["difference"] = (signs * (seen - mean)).ravel()
        return scores

    def _in_order(self) -> list[_Client]:
        """Return the clients in an order that does not depend on when they came."""
        return sorted(self._clients.values(), key=lambda client: _digest(client.examples))

    def _known(
        self,
        gradients: Sequence[Tensor],
        shapes: Sequence[tuple[int, ...]],
        canary_rows: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Return what the records that are no canaries should add along each canary's gradient."""
        flat = [g.flatten(1).double() for g in gradients]
        norms = torch.stack([f.norm(dim=1) for f in flat]).norm(dim=0)
        shares = (self._clip_norm / norms.clamp(min=1e-30)).clamp(max=1.0)
        shares[~torch.isfinite(norms)] = 0.0
        shares[torch.from_numpy(canary_rows)] = 0.0
        known = np.zeros(len(self._coordinates))
        for values, (start, end) in zip(flat, _spans(shapes), strict=True):
            here = (start <= self._coordinates) & (self._coordinates < end)
            total = (shares @ torch.nan_to_num(values)).cpu().numpy()
            known[here] = total[self._coordinates[here] - start]
        return known

    def _training(self) -> _Client:
        if self._current is None:
            raise AuditError("a probe must hear of the beginning of a training first")
        return self._current

    def _new_client(self, examples: Examples) -> _Client:
        count = len(self._coordinates)
        # By what a client holds, not by when it came: clients come in any order.
        generator = _generator(self._key, _digest(examples), str(self._twins(examples)).encode())
        coins = generator.bernoulli(count, 0.5)
        signs = np.where(generator.bernoulli(count, 0.5), 1.0, -1.0)
        return _Client(examples, coins, signs, np.zeros(count), np.zeros(count))

    def _twins(self, examples: Examples) -> int:
        """Count the clients so far that hold the very same records."""
        return sum(_digest(c.examples) == _digest(examples) for c in self._clients.values())


def _generator(key: bytes, *what: bytes) -> SecureGenerator:
    return SecureGenerator(hmac.digest(key, b"".join(what), "sha256"))


def _digest(examples: Examples) -> bytes:
    return hashlib.sha256(examples.x.numpy().tobytes() + examples.y.numpy().tobytes()).digest()


def _with_blank_records(examples: Examples, count: int) -> Examples:
    x, y = (
        torch.cat([values, values.new_zeros((count, *values.shape[1:]))])
        for values in (examples.x, examples.y)
    )
    return Examples(x, y)


def _spans(shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Return where each parameter lies among all of them, laid end to end."""
    return list(pairwise(accumulate((math.prod(shape) for shape in shapes), initial=0)))

"""Whether the rounds of a store are whole, in their places, and follow from one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedveil.vault.checkpoint import verify_signature_from
from fedveil.vault.errors import StoreError, VaultError
from fedveil.vault.header import Address, Header, Kind
from fedveil.vault.layout import Layout, refusals
from fedveil.vault.manifest import read_manifest
from fedveil.vault.parallel import usable_threads
from fedveil.vault.placed import read_placed
from fedveil.vault.signing import VerifyKey

__all__ = ["RoundCheck", "check_rounds", "check_signatures", "check_state"]


@dataclass(frozen=True)
class RoundCheck:
    """Whether a round is what it should be.

    Attributes
    ----------
    round : int
        The round.
    has_state : bool
        Whether a strategy state is kept for it, which is then checked too.
    problem : str or None
        One line on what is wrong; None when all is well.
    """

    round: int
    has_state: bool
    problem: str | None


def check_signatures(directory: Path, verify_key: VerifyKey) -> list[RoundCheck]:
    """Check every round of a store without any key that opens it, oldest first.

    Every byte but the wrap slots is covered: the coordinator signed it, it is in its place, and
    each round follows from the one before. That the rounds can be decrypted is not checked.

    Parameters
    ----------
    directory : Path
        The folder of the store.
    verify_key : VerifyKey
        The coordinator's, from elsewhere than the store.

    Raises
    ------
    StoreError
        If there is no store, or its folder cannot be read.
    """
    manifest, layout, threads = read_manifest(directory), Layout(directory), usable_threads()

    def verify(kind: Kind, round_: int) -> Header:
        address = Address(kind, manifest.store, manifest.run, round_)
        return read_placed(
            layout.path(kind, round_),
            lambda read, size: verify_signature_from(
                read, size, address, verify_key, threads=threads
            ),
        )

    return check_rounds(layout, verify)


def check_rounds(layout: Layout, verify: Callable[[Kind, int], Header]) -> list[RoundCheck]:
    """Check every round, oldest first; what is wrong is reported, not raised.

    Parameters
    ----------
    layout : Layout
        Where the files lie.
    verify : callable
        Verifies the whole file of a kind and a round, and returns its header or raises
        `VaultError`.

    Raises
    ------
    StoreError
        If the folder cannot be read.
    """
    with refusals(f"cannot read the model store {layout.directory}"):
        saved, states = layout.rounds(), set(layout.states())
    checks: list[RoundCheck] = []
    before: Header | None = None
    for number in saved:
        header: Header | None = None
        problems: list[str] = []
        try:
            header = verify("model", number)
            _check_link(layout, before, header)
        except VaultError as error:
            problems.append(str(error))
        if number in states:
            try:
                state = verify("strategy-state", number)
                if header is not None:
                    check_state(layout, header, state)
            except VaultError as error:
                problems.append(str(error))
        checks.append(RoundCheck(number, number in states, "; ".join(problems) or None))
        before = header
    return checks


def check_state(layout: Layout, model: Header, state: Header) -> None:
    """Refuse a strategy state that was not saved together with a model.

    Raises
    ------
    StoreError
        If it was not.
    """
    if state.fingerprint() != model.state:
        raise StoreError(
            f"{layout.path('strategy-state', state.round)} is not the strategy state that was "
            f"saved with the model of round {model.round}: another one was put in its place"
        )


def _check_link(layout: Layout, before: Header | None, header: Header) -> None:
    """Refuse a round that does not follow from the one before; rounds in between may be gone."""
    if before is None or before.round != header.round - 1:
        return
    if header.previous != before.fingerprint():
        raise StoreError(
            f"{layout.path('model', header.round)} does not follow from round {before.round} as "
            "it is there: one of the two was put in the place of another"
        )

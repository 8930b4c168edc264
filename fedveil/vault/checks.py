"""Whether the rounds of a store are whole, in their places, and follow from one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedveil.vault.checkpoint import read_signed_header, verify_signature_from
from fedveil.vault.errors import StoreError, VaultError
from fedveil.vault.header import Address, Header, Kind
from fedveil.vault.layout import Layout, refusals
from fedveil.vault.manifest import Manifest, read_manifest
from fedveil.vault.marks import MarkFile
from fedveil.vault.parallel import usable_threads
from fedveil.vault.placed import read_placed
from fedveil.vault.signing import VerifyKey

__all__ = ["RoundCheck", "check_rounds", "check_signatures", "check_state", "signed_headers"]


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


def signed_headers(
    directory: Path, verify_key: VerifyKey, marks: Path | None
) -> tuple[Manifest, list[Header]]:
    """Return what a store says about itself and its rounds, without any key that opens it.

    It works on a store whose model key was destroyed, too. Of the models only headers and lengths
    are checked.

    Parameters
    ----------
    directory : Path
        The folder of the store.
    verify_key : VerifyKey
        Whose signature every header must bear.
    marks : Path or None
        Where it is kept what was seen last; None checks nothing against that.

    Returns
    -------
    tuple of Manifest and list of Header
        The headers are in the order of the rounds.

    Raises
    ------
    RollbackError
        If the store holds less, or something else, than was seen.
    VaultError
        If there is no store, or a header is not the one that was signed.
    """
    manifest, layout = read_manifest(directory), Layout(directory)
    mark_file = MarkFile(marks, manifest.store) if marks is not None else None
    # The mark first: a round is committed before its mark is raised.
    mark = mark_file.read() if mark_file is not None else None
    with refusals(f"cannot read the model store {directory}"):
        saved = layout.rounds()

    def header(round_: int) -> Header:
        address = Address("model", manifest.store, manifest.run, round_)
        return read_placed(
            layout.path("model", round_),
            lambda read, size: read_signed_header(read, size, address, verify_key),
        )

    headers = {number: header(number) for number in saved}
    if mark_file is not None:
        mark_file.check(mark, directory, saved, lambda number: headers[number].fingerprint())
    return manifest, list(headers.values())


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

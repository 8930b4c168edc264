"""Whether an audit log is as it was written: what was changed is named by its line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedveil.audit_log.chain import FIRST, Head, line_hash, parse_line
from fedveil.audit_log.errors import AuditError

__all__ = ["Verified", "verify_audit"]


@dataclass(frozen=True)
class Verified:
    """What a log holds whose chain is whole.

    Attributes
    ----------
    first, last : int
        Numbers of its first and last line.
    head : str
        Hash of its last line.
    torn : int
        How many pieces of lines are in it that a crash had left.
    unfinished : int
        Bytes of a piece of a line at the end: a crash left it, or it is being written now. Nothing
        that was noted is missing.
    given : int or None
        Number of the line that is the head which was given; None where none was.
    """

    first: int
    last: int
    head: str
    torn: int
    given: int | None
    unfinished: int = 0


def verify_audit(
    paths: Sequence[Path],
    head: str | None = None,
    kept: Head | None = None,
    after: str | None = None,
) -> Verified:
    """Follow a chain from its first line to its last.

    Parameters
    ----------
    paths : sequence of Path
        The files of one chain, in order.
    head : str, optional
        Hash of a line that must be in it: a head that was noted somewhere else. Whatever was
        written up to that line is then unchanged.
    kept : Head, optional
        The head that the writer itself kept apart: the log must reach it.
    after : str, optional
        Hash of the last line of the files before these, where these are not the first.

    Raises
    ------
    AuditError
        If a line was changed, removed or moved, or a head is not in it. A piece of a line may
        stand at the end, behind all that was noted.
    """
    number, before = 0, FIRST if after is None else after
    first = torn = unfinished = 0
    found: int | None = None
    where = "the log"
    for path in paths:
        for count, (line, is_whole) in enumerate(_lines(path), start=1):
            earlier, where = where, f"{path}, line {count}"
            if not is_whole:
                # It is at the end of its file. What was noted was whole, as is checked below.
                where, unfinished = earlier, unfinished + len(line)
                break
            fields, told, named = parse_line(line, where)
            if first == 0:
                first = number = 1 if after is None else told
                _check_first(told, named, before, where)
            else:
                number += 1
                _check_link(told, named, number, before, where, earlier)
            before = line_hash(line)
            torn += fields.get("event") == "torn"
            if before == head:
                found = number
            if kept is not None and number == kept.number and before != kept.sha256:
                raise AuditError(f"{where}: was changed: it is not line {number} as it was noted")
    if first == 0:
        raise AuditError(f"{', '.join(map(str, paths))}: holds no line")
    if kept is not None and number < kept.number:
        raise AuditError(
            f"{where}: is the last whole one, with number {number}, but line {kept.number} was "
            f"noted: {kept.number - number} were cut off at the end"
        )
    if head is not None and found is None:
        raise AuditError(
            f"no line has the hash {head}: that line was changed, or cut off at the end"
        )
    return Verified(first, number, before, torn, found, unfinished)


def _check_first(told: int, named: str, before: str, where: str) -> None:
    if named != before or (told == 1) != (before == FIRST):
        raise AuditError(
            f"{where}: has number {told}, and is not the first line of the chain, or not the one "
            "after the line that was given: give the files before it first"
        )


def _check_link(told: int, named: str, number: int, before: str, where: str, earlier: str) -> None:
    if told != number and named == before:
        raise AuditError(f"{where}: was changed: it has number {told} where {number} is due")
    if told > number:
        raise AuditError(
            f"{where}: has number {told} where {number} is due: {told - number} lines before it "
            "were removed"
        )
    if told < number:
        raise AuditError(
            f"{where}: has number {told} where {number} is due: lines were moved or repeated"
        )
    if named != before:
        raise AuditError(
            f"{earlier}: was changed: the line after it names another hash than it has"
        )


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Yield each line without its end, and whether it has one."""
    try:
        with path.open("rb") as file:
            for line in file:
                yield line.removesuffix(b"\n"), line.endswith(b"\n")
    except OSError as error:
        raise AuditError(f"{path}: cannot be read ({error.strerror})") from None

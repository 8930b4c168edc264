"""The commands `fedveil audit-log`: whether an audit log is as it was written, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedveil.errors import FedveilError
from fedveil.home import audit_heads_dir, home

if TYPE_CHECKING:
    from fedveil.audit_log.chain import Head
    from fedveil.audit_log.trail import Event
    from fedveil.audit_log.verify import Verified

__all__ = ["audit_logs"]

_out = Console(soft_wrap=True)

audit_logs = typer.Typer(
    help=(
        "Check and show audit logs: those that `fedveil server`, `fedveil run` and `fedveil "
        "client` keep in their kit, and that of `fedveil serve --audit-log FILE`."
    ),
    no_args_is_help=True,
)

Files = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="KIT|FILE...",
        help="A kit, or a log; several files of one chain, in order. Default: $FEDVEIL_HOME.",
    ),
]
HeadOption = Annotated[
    str | None,
    typer.Option(metavar="HASH", help="A head that was noted before: it must be in the log."),
]
AfterOption = Annotated[
    str | None,
    typer.Option(metavar="HASH", help="The head of earlier files that are not given."),
]


@audit_logs.command("verify")
def audit_verify(files: Files = None, head: HeadOption = None, after: AfterOption = None) -> None:
    """Tell whether a log is as it was written, and if not, at which line.

    Lines that were changed, removed, moved or put in are found by the log alone. Lines that were
    cut off at the end are found by the head that is kept apart ($FEDVEIL_HOME/audit), or by
    --head HASH. A piece of a line that a crash left at the end is told, and is no damage. Whoever
    may write the log and the head can write another history: note the head on another machine
    from time to time.
    """
    for option, told in (("--head", head), ("--after", after)):
        if told is not None and re.fullmatch(r"[0-9a-f]{64}", told) is None:
            raise FedveilError(f"{option} {told:.80}: a head has 64 characters from 0-9 and a-f")
    paths, kept = _log(files)
    for line in _in_words(_verified(paths, kept, head, after), kept):
        _out.print(line, highlight=False, markup=False)


@audit_logs.command("show")
def audit_show(
    files: Files = None,
    last: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The last N of the lines alone.")
    ] = None,
    event: Annotated[
        str | None, typer.Option(help="Lines of this event alone, for example refuse.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="Lines of the run of this number alone.")] = None,
    after: AfterOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as in the log.")
    ] = False,
) -> None:
    """Show a log's lines, oldest first; one that does not verify ends with an error."""
    from fedveil.audit_log.trail import read_events

    paths, kept = _log(files)
    events = [one for path in paths for one in read_events(path)[0]]
    chosen = [
        one
        for one in events
        if (event or one.get("event")) == one.get("event")
        and (run or one.get("run")) == one.get("run")
    ]
    for one in chosen if last is None else chosen[-last:]:
        # As ASCII: what others sent must not steer the terminal.
        line = json.dumps(one) if as_json else _line(one)
        _out.print(line, highlight=False, markup=False, emoji=False)
    _verified(paths, kept, None, after)


def _log(files: Sequence[Path] | None) -> tuple[list[Path], Head | None]:
    """Return the files of a log, and the head that is kept of it."""
    from fedveil.audit_log.chain import head_path, read_head
    from fedveil.audit_log.trail import trail

    given = list(files or [home()])
    paths = [trail(path)[0] if path.is_dir() else path for path in given]
    own, own_head = trail(paths[-1].parent)
    is_own = paths[-1].name == own.name and own_head.exists()
    return paths, read_head(own_head if is_own else head_path(audit_heads_dir(), paths[-1]))


def _verified(
    paths: Sequence[Path], kept: Head | None, head: str | None, after: str | None
) -> Verified:
    from fedveil.audit_log.verify import verify_audit

    return verify_audit(paths, head, kept, after)


def _in_words(found: Verified, kept: Head | None) -> list[str]:
    lines = [f"lines {found.first} to {found.last} follow one another; the head is {found.head}"]
    if kept is not None:
        lines.append(f"it reaches line {kept.number}, the last that was noted")
    if found.given is not None:
        lines.append(f"line {found.given} is the head that you gave: up to it nothing was changed")
    if kept is None and found.given != found.last:
        lines.append("whether lines were cut off at the end is not known: no head of it is kept")
    if found.torn:
        lines.append(f"{found.torn} lines were torn by a crash; their pieces are in the log")
    if found.unfinished:
        lines.append(
            f"{found.unfinished} bytes of an unfinished line stand at the end: a crash left them, "
            "or they are being written now; nothing that was noted is missing"
        )
    return lines


def _line(event: Event) -> str:
    from fedveil.strategies.failures import one_line

    told = {name: value for name, value in event.items() if name not in ("number", "before")}
    time, what = told.pop("time", ""), told.pop("event", "")
    rest = "  ".join(f"{name}={one_line(str(value))}" for name, value in told.items())
    return one_line(f"{event.get('number', '')} {time} {what}") + (f"  {rest}" if rest else "")

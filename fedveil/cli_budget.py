"""The command `fedveil budget`: what a data owner's ledger holds, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.bar import Bar
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedveil.errors import FedveilError
from fedveil.home import default_ledger_file, default_policy_file, marks_dir

if TYPE_CHECKING:
    from fedveil.privacy.budget import DataSetSpend
    from fedveil.privacy.ledger import Snapshot
    from fedveil.privacy.policy import Policy

__all__ = ["budget"]

budget = typer.Typer(
    help=(
        "Show and check the ledger: what this client released of each data set, over all runs. "
        "Every command checks the whole chain first."
    ),
    no_args_is_help=True,
)

_out = Console(soft_wrap=True)
_MOST_DIGITS = 18
"""Of an entry's number; Python reads no number of thousands of digits."""

LedgerPath = Annotated[
    Path | None,
    typer.Argument(metavar="LEDGER", help="Ledger. Default: ledger.db in $FEDVEIL_HOME."),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option("--policy", help="Policy with the budgets. Default: the one in $FEDVEIL_HOME."),
]


@budget.command("show")
def budget_show(
    ledger: LedgerPath = None,
    policy: PolicyOption = None,
    delta: Annotated[
        float | None,
        typer.Option(
            min=1e-15, max=0.5, help="Delta of data sets for which the policy names none."
        ),
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Also write a plot to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what was spent of each budget; every epsilon is computed anew from the entries."""
    from fedveil.privacy.budget import spend_plot, view_of

    snapshot = _read(ledger or default_ledger_file())
    view = view_of(snapshot, _policy(policy), delta)
    if svg is not None:
        try:
            svg.write_text(spend_plot(snapshot, view), encoding="utf-8")
        except OSError as error:
            raise FedveilError(f"{svg}: cannot be written ({error.strerror})") from None
    if as_json:
        print(view.model_dump_json(indent=2))  # noqa: T201
        return
    _show(view.datasets)


@budget.command("verify")
def budget_verify(
    ledger: LedgerPath = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER:HASH",
            help="A head that was noted earlier and elsewhere: it must be in the chain.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Check that the ledger is whole, unchanged and no older than what was seen on this machine.

    Prints the head of the chain. Whoever notes it elsewhere can tell later, with --head, that
    nothing before it was changed or removed, even if the whole machine was put back.
    """
    path = ledger or default_ledger_file()
    snapshot = _read(path)
    if head is not None:
        _require_head(path, snapshot, head)
    last = f"{snapshot.head.number}:{snapshot.head.hash.hex()}"
    if as_json:
        told = {
            "ledger": snapshot.name,
            "entries": len(snapshot.entries),
            "head": last,
            "was_known": snapshot.was_known,
        }
        print(json.dumps(told, indent=2))  # noqa: T201
        return
    _out.print(
        f"{path}: {len(snapshot.entries)} entries, the chain is whole"
        + (" and reaches the head that was seen here" if snapshot.was_known else ""),
        highlight=False,
    )
    if not snapshot.was_known:
        _out.print(
            "[yellow]warning:[/] no head of it is kept on this machine, so that entries missing at "
            "its end would not show",
            highlight=False,
        )
    _out.print(f"head {last}", highlight=False)


@budget.command("export")
def budget_export(ledger: LedgerPath = None) -> None:
    """Print the ledger as JSON, with every hash: others can check the chain and the epsilon."""
    snapshot = _read(ledger or default_ledger_file())
    exported = {
        "format": "fedveil-ledger-export-1",
        "ledger": snapshot.name,
        "start": snapshot.hashes[0].hex(),
        "entries": [
            {"body": body, "hash": hash_.hex()}
            for body, hash_ in zip(snapshot.bodies, snapshot.hashes[1:], strict=True)
        ],
    }
    print(json.dumps(exported, indent=2))  # noqa: T201


def _read(path: Path) -> Snapshot:
    from fedveil.privacy.ledger import Ledger

    snapshot = Ledger(path, marks_dir()).read()
    if not snapshot.name:
        raise FedveilError(
            f"there is no ledger at {path}; a client makes it when it first releases something "
            "under a policy"
        )
    return snapshot


def _policy(named: Path | None) -> Policy | None:
    from fedveil.client.policy_file import read_policy

    path = named or default_policy_file()
    return read_policy(path) if named or path.exists() else None


def _require_head(path: Path, snapshot: Snapshot, head: str) -> None:
    number, colon, hash_ = head.partition(":")
    if not colon or not number.isdecimal() or len(number) > _MOST_DIGITS:
        raise FedveilError(f"--head {head}: write it as NUMBER:HASH, as this command prints it")
    at = int(number)
    if at >= len(snapshot.hashes) or snapshot.hashes[at].hex() != hash_.lower():
        raise FedveilError(
            f"{path}: the head {number}:{hash_[:12]}... is not in its chain of "
            f"{len(snapshot.entries)} entries: an older or another ledger was put in its place"
        )


def _show(datasets: tuple[DataSetSpend, ...]) -> None:
    from fedveil.console import epsilon_text

    spent = Table(title="Budgets", title_justify="left")
    for name in ("data set", "protects", "spent", "of", "at delta", "by Rényi DP", "charges", ""):
        left = name in ("data set", "protects", "")
        spent.add_column(name, justify="left" if left else "right")
    runs = Table(title="Runs", title_justify="left")
    for name in ("data set", "run", "task", "charges", "epsilon alone", "from", "to"):
        right = name in ("charges", "epsilon alone")
        runs.add_column(name, justify="right" if right else "left", overflow="fold")
    for data in datasets:
        unknown = "no limit: released without noise" if data.exact else "unknown: give --delta"
        if len(data.units) > 1:
            unknown = "no limit: releases of two units, which no epsilon covers"
        spent.add_row(
            escape(data.dataset),
            " and ".join(f"a {unit}" for unit in data.units) or "nobody yet",
            unknown if data.epsilon is None else epsilon_text(data.epsilon),
            "no budget" if data.budget is None else f"{data.budget:g}",
            "" if data.delta is None else f"{data.delta:g}",
            "" if data.epsilon_rdp is None else epsilon_text(data.epsilon_rdp),
            str(data.charges),
            ""
            if data.budget is None or data.epsilon is None
            else Bar(data.budget, 0, min(data.epsilon, data.budget), width=20),
        )
        for run in data.runs:
            runs.add_row(
                escape(data.dataset),
                escape(run.run),
                escape(run.task),
                str(run.charges),
                epsilon_text(run.epsilon),
                _minute(run.first),
                _minute(run.last),
            )
    _out.print(spent)
    _out.print(runs)


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")

"""What callers may ask: options of `fedveil serve`; `fedveil queries` and `fedveil audit-log`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedveil.errors import FedveilError
from fedveil.home import audit_heads_dir, default_budgets_file, own_file

if TYPE_CHECKING:
    from fedveil.server.inference.policy import PolicyOptions

__all__ = [
    "AuditLogOption",
    "BudgetFileOption",
    "OutputsOption",
    "QueryBudgetOption",
    "RateOption",
    "RateRowsOption",
    "audit_logs",
    "parse_policy",
    "queries",
]

_out = Console(soft_wrap=True)

OutputsOption = Annotated[
    str,
    typer.Option(
        metavar="full|labels|top-K|round-D",
        help="What answers hold: logits; the class alone; the probabilities of the K most "
        "probable classes; or all probabilities with D decimals.",
    ),
]
RateOption = Annotated[
    float | None, typer.Option(help="Requests a second that each caller may send.")
]
RateRowsOption = Annotated[
    float | None, typer.Option(help="Rows a second that each caller may ask for.")
]
QueryBudgetOption = Annotated[
    int | None,
    typer.Option(metavar="ROWS", help="Rows that each caller may ask for in all, of this run."),
]
BudgetFileOption = Annotated[
    Path | None,
    typer.Option(help="Where they are counted. Default: budgets.sqlite3 in $FEDVEIL_HOME."),
]
AuditLogOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write down who asked for what; see `fedveil audit-log`. What cannot be written "
        "down is not answered.",
    ),
]


def parse_policy(
    outputs: str,
    rate: float | None,
    rate_rows: float | None,
    query_budget: int | None,
    budget_file: Path | None,
    audit_log: Path | None,
) -> PolicyOptions:
    """Return the policy that options of `fedveil serve` ask for.

    Raises
    ------
    FedveilError
        If the form of outputs is not known, or there is a file of budgets and no budget.
    """
    from fedveil.server.inference.outputs import parse_outputs
    from fedveil.server.inference.policy import PolicyOptions

    if budget_file is not None and query_budget is None:
        raise FedveilError(
            f"--budget-file {budget_file}: counts nothing without --query-budget ROWS; give both"
        )
    default_file = default_budgets_file()
    if query_budget is not None and budget_file is None:
        own_file(default_file)
    return PolicyOptions(
        outputs=parse_outputs(outputs),
        rate=rate,
        rate_rows=rate_rows,
        query_budget=query_budget,
        budget_file=budget_file or default_file,
        audit_log=audit_log,
        audit_heads=audit_heads_dir(),
    )


queries = typer.Typer(
    help=(
        "Show and reset how many rows callers of `fedveil serve --query-budget ROWS` have used.\n\n"
        "A caller is token:NAME, certificate:NAME or address:ADDRESS."
    ),
    no_args_is_help=True,
)

QueriesPath = Annotated[
    Path | None,
    typer.Option("--file", help="The file. Default: budgets.sqlite3 in $FEDVEIL_HOME."),
]


@queries.command("list")
def queries_list(file: QueriesPath = None) -> None:
    """List runs, callers and rows; rows that a running service has set aside count as used."""
    from fedveil.server.inference.budget_file import read_use

    table = Table("run", "caller", "rows used")
    for use in read_use(file or default_budgets_file()):
        table.add_row(use.run, use.caller, f"{use.rows:,}")
    _out.print(table)


@queries.command("reset")
def queries_reset(
    caller: Annotated[str, typer.Argument(help="For example token:web-shop.")],
    run: Annotated[str | None, typer.Option(help="Of this run alone.")] = None,
    file: QueriesPath = None,
) -> None:
    """Let a caller begin anew. Rows that a running service has set aside stay with it."""
    from fedveil.server.inference.budget_file import reset_use

    rows = reset_use(file or default_budgets_file(), caller, run)
    _out.print(f"{caller} may begin anew; {rows:,} rows were used", highlight=False, markup=False)


audit_logs = typer.Typer(
    help="Check the log that `fedveil serve --audit-log FILE` writes.", no_args_is_help=True
)


@audit_logs.command("verify")
def audit_verify(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="The log; several files of one chain, in order."),
    ],
    head: Annotated[
        str | None,
        typer.Option(metavar="HASH", help="A head that was noted before: it must be in the log."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="HASH", help="The head of earlier files that are not given."),
    ] = None,
) -> None:
    """Tell whether a log is as it was written, and if not, at which line.

    Lines that were changed, removed, moved or put in are found by the log alone. Lines that were
    cut off at the end are found by the head that the service keeps in $FEDVEIL_HOME/audit, or by
    --head HASH. Whoever may write the log and the head can write another history: note the head
    on another machine from time to time.
    """
    from fedveil.server.inference.audit_chain import head_path, read_head
    from fedveil.server.inference.audit_verify import verify_audit

    for option, told in (("--head", head), ("--after", after)):
        if told is not None and re.fullmatch(r"[0-9a-f]{64}", told) is None:
            raise FedveilError(f"{option} {told:.80}: a head has 64 characters from 0-9 and a-f")
    kept = read_head(head_path(audit_heads_dir(), files[-1]))
    found = verify_audit(files, head, kept, after)
    lines = [f"lines {found.first} to {found.last} follow one another; the head is {found.head}"]
    if kept is not None:
        lines.append(f"it reaches line {kept.number}, the last that the service noted")
    if found.given is not None:
        lines.append(f"line {found.given} is the head that you gave: up to it nothing was changed")
    if kept is None and found.given != found.last:
        lines.append("whether lines were cut off at the end is not known: no head of it is kept")
    if found.torn:
        lines.append(f"{found.torn} lines were torn by a crash; their pieces are in the log")
    for line in lines:
        _out.print(line, highlight=False, markup=False)

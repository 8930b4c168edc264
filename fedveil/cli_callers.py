"""What callers may ask: options of `fedveil serve`, and `fedveil queries`."""

from __future__ import annotations

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

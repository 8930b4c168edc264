"""The command `fedveil report`: what runs released, what that cost, and whether it is true."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedveil.cli_models import KekOption, SignerOption, parse_signer
from fedveil.errors import FedveilError

__all__ = ["report"]

_out = Console(soft_wrap=True)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders; or one report.json, with --verify."),
    ],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check report.json: its signature, every figure from its events, the run's files.",
        ),
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Also draw the report anew, into this file.")
    ] = None,
    kek: KekOption = None,
    signer: SignerOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show what a run released, and what that cost; every figure is computed anew.

    RUN is a run folder, for example one under runs/. The same report with plots is report.html
    in it. With --verify the report that was written and signed is checked instead: exit code 1
    and one line where something does not fit.

    Several runs on the same data set are composed into one claim: the releases of each client are
    added up, and the client that released most counts. Each report is verified first.

    Examples: `fedveil report runs/RUN`, `fedveil report runs/RUN --verify`,
    `fedveil report runs/ONE runs/TWO`.
    """
    from fedveil.console import composition_tables, report_tables
    from fedveil.server.reporting import report_of
    from fedveil.server.run_folder import RunFolder
    from fedveil.server.run_info import replace_text

    key = parse_signer(signer)
    if len(runs) > 1:
        from fedveil.privacy.composition import compose_reports
        from fedveil.server.verifying import verify_report

        if html is not None:
            raise FedveilError("--html draws one run; name one, or leave it out")
        together = compose_reports([verify_report(run, kek, key) for run in runs])
        if as_json:
            print(together.model_dump_json(indent=2))  # noqa: T201
            return
        for table in composition_tables(together):
            Console().print(table)
        return
    (run,) = runs
    if verify:
        from fedveil.server.verifying import verify_report

        found = verify_report(run, kek, key)
    else:
        found = report_of(RunFolder.open(run, kek, key))
    if html is not None:
        from fedveil.privacy.report_html import render_html

        replace_text(html, render_html(found))
    if as_json:
        print(found.model_dump_json(indent=2))  # noqa: T201
        return
    for table in report_tables(found):
        Console().print(table)
    if verify:
        checked = "signature, events and figures fit"
        if run.is_dir():
            checked += ", and so do journal, metrics and model of the run"
        _out.print(f"[bold green]✓ verified[/]: {checked}", highlight=False)

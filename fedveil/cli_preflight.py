"""The command `fedveil preflight`: what is checked before a run, with a tick each."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

__all__ = ["ModeOption", "preflight"]

_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)

ModeOption = Annotated[
    str | None,
    typer.Option(
        metavar="UNIT/NOISE",
        help="Privacy mode: record/local, record/distributed, client/distributed, "
        "client/central or none, with what the scenario says of it.",
    ),
]


def preflight(
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario (see `fedveil scenarios`) or a TOML file.")
    ] = "digits",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting. May be repeated."),
    ] = None,
    mode: ModeOption = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the data files of the task lie.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Check that nothing would make a scenario's privacy claim false, without running it.

    Prints what was checked, what is checked in every round, what the claim assumes and what it
    does not cover. Exit code 1 when something is refused. The same checks precede every run.

    Examples: `fedveil preflight breast-cancer --set dp.delta=1e-6`,
    `fedveil preflight --mode client/distributed`.
    """
    from fedveil.settings import parse_override
    from fedveil.simulations.scenarios import find_scenario

    overrides = [parse_override(text) for text in settings or []]
    config = find_scenario(scenario).config(overrides, mode)
    with _err.status("Loading PyTorch ..."):
        from fedveil.simulations.preflight import WATCHED
        from fedveil.simulations.preflight import preflight as look
    # A refusal says it already.
    logging.getLogger("fedveil").setLevel(logging.ERROR)
    found = look(config, data_dir)
    if as_json:
        print(json.dumps({"passed": found.passed, **asdict(found)}))  # noqa: T201
    else:
        _out.print(f"[bold]Checked[/] ({scenario})")
        for finding in found.findings:
            if finding.refusal is None:
                _out.print(f"  [green]✓[/] {escape(finding.title)}", highlight=False)
            else:
                _out.print(f"  [bold red]✗[/] {escape(finding.refusal)}", highlight=False)
        for warning in found.warnings:
            _out.print(f"  [yellow]![/] {escape(warning)}", highlight=False)
        sections = {"Assumed": found.assumptions, "Not covered": found.not_covered}
        if config.dp.is_private:
            sections = {"Checked in every round": WATCHED, **sections}
        for title, lines in sections.items():
            if lines:
                _out.print(f"[bold]{title}[/]")
            for line in lines:
                _out.print(f"  - {escape(line)}", highlight=False)
    if not found.passed:
        raise typer.Exit(1)

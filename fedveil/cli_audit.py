"""The command `fedveil audit`: attack the training, and hold what is found against the claim."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedveil.errors import FedveilError

if TYPE_CHECKING:
    from fedveil.config import Config
    from fedveil.privacy.audit.result import AuditResult
    from fedveil.simulations.defects import Defect

__all__ = ["audit"]

_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)

_EASY_EPSILON = 4.0
"""A self-test claims no more: it asks whether defects are seen, not how private the scenario is."""


def audit(
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario, a TOML file, or a run folder.")
    ] = "digits",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting. May be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the audit here, signed. Default for a run: audit.json in it."),
    ] = None,
    canaries: Annotated[
        int, typer.Option(min=1, help="Canaries a client; at most the parameters of the model.")
    ] = 2000,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the data files of the task lie.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Make the audit repeatable, noise too.")] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test", help="Build known defects in, one after another; each must be found."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="End standard output with one JSON object.")
    ] = False,
) -> None:
    """Attack the training of a scenario, and bound its epsilon from below.

    The scenario is trained once as it stands, with canaries: records whose gradients the attacker
    chose, put in or left out by fair coins. From everything that the clients release it guesses
    the coins. How often it is right bounds epsilon from below, with 95 % confidence. Exit code 1
    when a bound passes the claim: then the claim is false.

    With a run folder in the place of SCENARIO, its own settings are audited, and its report shows
    the result from then on.

    Examples: `fedveil audit`, `fedveil audit digits --set dp.target_epsilon=4 --out audit.json`,
    `fedveil audit runs/RUN`, `fedveil audit --self-test`.
    """
    from fedveil.settings import parse_override
    from fedveil.simulations.scenarios import find_scenario

    overrides = [parse_override(text) for text in settings or []]
    run = Path(scenario) if (Path(scenario) / "run.json").exists() else None
    if run is None:
        config = find_scenario(scenario).config(overrides)
    elif overrides:
        raise FedveilError("a run is audited with its own settings: leave --set out")
    else:
        config, remembered = _settings_of(run)
        data_dir = data_dir or remembered
    if self_test:
        _self_test(config, canaries, data_dir, seed, as_json=as_json)
        return
    result = _audit(config, canaries, data_dir, seed, None)
    _print(result)
    _keep(result, run, out)
    if as_json:
        print(result.model_dump_json())  # noqa: T201
    if not result.holds:
        raise typer.Exit(1)


def _settings_of(run: Path) -> tuple[Config, Path | None]:
    from fedveil.server.run_info import read_info, read_settings

    info = read_info(run)
    return read_settings(run, info), info.data_dir


def _audit(
    config: Config,
    canaries: int,
    data_dir: Path | None,
    seed: int | None,
    defect: Defect | None,
) -> AuditResult:
    from fedveil.console import ProgressObserver

    with _err.status("Loading PyTorch ..."):
        from fedveil.simulations.audit import audit as run_audit
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("fedveil").setLevel(logging.ERROR)
    with ProgressObserver(_err) as observer:
        return run_audit(
            config, observer, canaries=canaries, data_dir=data_dir, seed=seed, defect=defect
        )


def _print(result: AuditResult) -> None:
    from fedveil.console import audit_tables

    for table in audit_tables(result):
        _out.print(table)


def _keep(result: AuditResult, run: Path | None, out: Path | None) -> None:
    from fedveil.server.audits import AUDIT_NAME, write_audit
    from fedveil.server.reporting import write_report
    from fedveil.server.run_folder import RunFolder

    path = out or (run / AUDIT_NAME if run else None)
    if path is None:
        return
    write_audit(path, result)
    _out.print(f"[bold]audit     [/]{path}", highlight=False)
    if run is not None and path == run / AUDIT_NAME:
        write_report(RunFolder.open(run))
        _out.print(f"[bold]report    [/]{run / 'report.html'}", highlight=False)


def _self_test(
    config: Config, canaries: int, data_dir: Path | None, seed: int | None, *, as_json: bool
) -> None:
    from fedveil.console import epsilon_text
    from fedveil.privacy.report_words import rounded_down
    from fedveil.simulations.defects import DEFECTS

    target = config.dp.target_epsilon
    if target is not None and target > _EASY_EPSILON:
        dp = config.dp.model_copy(update={"target_epsilon": _EASY_EPSILON})
        config = config.model_copy(update={"dp": dp})
    table = Table("built in", "claimed epsilon", "at least", "", title="Self-test of the audit")
    shown: list[dict[str, object]] = []
    is_sound = True
    for defect in (None, *DEFECTS):
        result = _audit(config, canaries, data_dir, seed, defect)
        is_right = result.holds if defect is None else not result.holds
        is_sound &= is_right
        verdict = "claim stands" if result.holds else "claim refuted"
        table.add_row(
            "nothing" if defect is None else DEFECTS[defect],
            epsilon_text(result.claimed),
            rounded_down(max(result.bound, result.bound_any)),
            f"[green]✓[/] {verdict}" if is_right else f"[bold red]✗ {verdict}[/]",
        )
        shown.append({"control": defect, "claimed": result.claimed, "bound": result.bound})
    _out.print(table)
    if as_json:
        print(json.dumps({"sound": is_sound, "controls": shown}))  # noqa: T201
    if not is_sound:
        raise typer.Exit(1)

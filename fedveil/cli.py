"""The `fedveil` command."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedveil import __version__
from fedveil.cli_audit import audit
from fedveil.cli_audit_log import audit_logs
from fedveil.cli_budget import budget
from fedveil.cli_callers import queries
from fedveil.cli_client import client
from fedveil.cli_keys import keys, roster
from fedveil.cli_models import models
from fedveil.cli_owner import policy
from fedveil.cli_predict import predict
from fedveil.cli_preflight import ModeOption, preflight
from fedveil.cli_provision import kit, provision
from fedveil.cli_report import report
from fedveil.cli_run import run
from fedveil.cli_serve import serve
from fedveil.cli_server import server
from fedveil.cli_status import status
from fedveil.cli_tokens import tokens
from fedveil.cli_usage import told_in_one_line
from fedveil.errors import FedveilError
from fedveil.hygiene import forbid_core_dumps
from fedveil.logs import LogFormat, asks_for_json, is_json, log_to

if TYPE_CHECKING:
    from fedveil.config import Config
    from fedveil.privacy.report import Report
    from fedveil.server.federation import RunSummary

# Flower reports every start to its makers unless told not to.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedveil",
    help=(
        "Federated learning in which every privacy claim can be checked.\n\n"
        "Start with `fedveil simulate`: it trains on real data in this process, under "
        "differential privacy, and leaves an encrypted model and a privacy report."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    # Otherwise lines break where they do in the source, whatever the terminal's width.
    rich_markup_mode="markdown",
)
app.add_typer(models, name="models")
app.add_typer(keys, name="keys")
app.add_typer(roster, name="roster")
app.add_typer(policy, name="policy")
app.add_typer(budget, name="budget")
app.add_typer(tokens, name="tokens")
app.add_typer(queries, name="queries")
app.add_typer(audit_logs, name="audit-log")
app.add_typer(kit, name="kit")
app.command()(provision)
app.command()(server)
app.command()(client)
app.command()(run)
app.command()(status)
app.command()(serve)
app.command()(predict)
app.command()(preflight)
app.command()(audit)
app.command()(report)

_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)

_INTERRUPTED = 130


def main() -> None:
    """Run the command; a user's mistake ends it with one line.

    The exit code is 1, or 2 where the words of the command are wrong.
    """
    try:
        # Here and not in what is imported: a program that uses Fedveil decides for itself.
        forbid_core_dumps()
        if asks_for_json(sys.argv[1:]):
            # Before the options are read: what is wrong with them is told as JSON, too.
            log_to(None, LogFormat.JSON)
        # By itself Typer would draw a box of several lines around a mistake.
        sys.exit(app(prog_name="fedveil", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        # Typer has printed the help already.
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _say(told_in_one_line(error))
        sys.exit(error.exit_code)
    except click.Abort:
        _say("stopped: the question was not answered with yes")
        sys.exit(1)
    except FedveilError as error:
        _say(str(error))
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output has gone (`fedveil report RUN | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _say(mistake: str) -> None:
    if is_json():
        logging.getLogger("fedveil").error("%s", mistake)
        return
    _err.print(f"[bold red]error:[/] {escape(mistake)}", highlight=False)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        _out.print(__version__, highlight=False)
        raise typer.Exit


@app.command()
def simulate(
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario (see `fedveil scenarios`) or a TOML file.")
    ] = "digits",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a setting, for example --set dp.target_epsilon=3. May be repeated.",
        ),
    ] = None,
    mode: ModeOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to make. Default: runs/SCENARIO-TIME.")
    ] = None,
    clients: Annotated[int | None, typer.Option(help="Number of clients.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of first weights, partition and cohorts; not of noise.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the data files of the task lie.")
    ] = None,
    kek: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help=(
                "Key-encryption key of the model store: file:PATH (made if needed), passphrase:, "
                "vault:KEY or aws:KEY. Default: a key file in $FEDVEIL_HOME."
            ),
        ),
    ] = None,
    policy_file: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            metavar="FILE",
            help="Policy of every client, and a ledger for each: see docs/policy.md.",
        ),
    ] = None,
    ledgers: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the clients' ledgers lie, for budgets over several runs. Default: "
            "RUN/ledgers.",
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue a run that was stopped or killed.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="auto|cohort|sequential|processes|ray",
            help="What runs the clients. cohort: all of a round trained in one call, fastest for "
            "small models. sequential: one after another. processes: several at a time, for "
            "clients that take long. ray: the same on a Ray cluster. auto: cohort where the model "
            "can be stacked, else sequential. The results are the same but for rounding: see "
            "docs/simulation.md.",
        ),
    ] = "auto",
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many processes, with --engine processes or ray; it does not change the "
            "results. Default: one a core.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End standard output with one JSON object.")
    ] = False,
) -> None:
    """Train a global model over simulated clients that hold real data.

    SCENARIO is a built-in one (`fedveil scenarios` lists them) or a TOML file of settings. The
    clients run on this machine, with the code that a deployed client runs. Ctrl-C finishes the
    round and stops; --resume goes on from there, also after a crash.

    Examples: `fedveil simulate`, `fedveil simulate breast-cancer --set dp.target_epsilon=3`,
    `fedveil simulate --mode client/distributed`,
    `fedveil simulate mnist --data-dir DIR --clients 20`,
    `fedveil simulate mnist --data-dir DIR --engine processes`,
    `fedveil simulate --resume runs/RUN`.
    """
    from fedveil.settings import parse_override
    from fedveil.simulations.scenarios import find_scenario

    overrides = [parse_override(text) for text in settings or []]
    for key, value in (
        ("federation.clients", clients),
        ("federation.rounds", rounds),
        ("seed", seed),
    ):
        if value is not None:
            overrides.append((key, value))
    if kek == "":
        raise FedveilError("--kek is empty; leave it out for the default, or name a key")
    if resume is not None and (overrides or mode is not None or out is not None):
        raise FedveilError(
            "--resume goes on with the run's own settings: leave --set, --mode, --out, --clients, "
            "--rounds and --seed out"
        )
    config = None if resume else find_scenario(scenario).config(overrides, mode)
    folder = resume or out or _fresh_folder(Path(scenario).stem)
    owners, runner = (policy_file, ledgers), (engine, processes)
    _simulate(config, folder, data_dir, kek, owners, runner, as_json=as_json)


def _simulate(
    config: Config | None,
    folder: Path,
    data_dir: Path | None,
    kek: str | None,
    owners: tuple[Path | None, Path | None],
    runner: tuple[str, int | None],
    *,
    as_json: bool,
) -> None:
    from fedveil.console import ProgressObserver

    with _err.status("Loading PyTorch ..."):
        from fedveil.simulations.simulate import simulate as run_simulation
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("fedveil").setLevel(logging.ERROR)
    started = time.monotonic()
    with _stop_on_ctrl_c() as should_stop, ProgressObserver(_err) as observer:
        summary = run_simulation(
            config,
            folder,
            observer,
            data_dir=data_dir,
            kek=kek,
            policy=owners[0],
            ledgers=owners[1],
            engine=runner[0],
            processes=runner[1],
            should_stop=should_stop,
            say=lambda line: _err.print(line, highlight=False, markup=False),
        )
    _print_summary(summary, folder, kek or summary.folder.info.kek)
    if as_json:
        print(json.dumps(_summary_object(summary.report, folder, time.monotonic() - started)))  # noqa: T201
    if not summary.finished:
        _err.print(
            f"stopped after round {summary.folder.committed}; go on with: "
            f"fedveil simulate --resume {folder}",
            highlight=False,
        )
        raise typer.Exit(_INTERRUPTED)


def _print_summary(summary: RunSummary, folder: Path, kek: str) -> None:
    from fedveil.console import epsilon_text, percent

    report = summary.report
    m = report.facts.mechanism
    claim = f"{epsilon_text(report.epsilon)} at delta = {m.delta:g}, for every {m.unit}"
    figures = summary.folder.records[-1].client_mean if summary.folder.records else {}
    told = ", ".join(
        f"{name} {percent(figures[key])}"
        for key, name in (
            ("accuracy", "accuracy"),
            ("balanced_accuracy", "balanced accuracy"),
            ("auc", "AUC"),
        )
        if key in figures
    )
    rows = {
        "accuracy": percent(report.accuracy),
        **({"clients": f"{told} (mean over the clients' own test records)"} if told else {}),
        "epsilon": claim if report.claims else "none: no privacy is claimed",
        "report": f"{folder / 'report.html'}",
        "model": f"{folder / 'model'} (encrypted; key: {kek})",
    }
    for name, value in rows.items():
        _out.print(f"[bold]{name:<10}[/]{escape(value)}", highlight=False)


def _summary_object(report: Report, folder: Path, seconds: float) -> dict[str, object]:
    m = report.facts.mechanism
    return {
        "run": str(folder),
        "task": report.facts.task,
        "rounds": len(report.rounds),
        "accuracy": report.accuracy,
        "epsilon": report.epsilon,
        "delta": m.delta if report.claims else None,
        "unit": m.unit,
        "noise": m.noise,
        "secagg": report.facts.secagg,
        "seconds": round(seconds, 3),
    }


@app.command()
def scenarios() -> None:
    """List the built-in scenarios."""
    from fedveil.simulations.scenarios import built_in_scenarios

    table = Table(show_header=False, box=None)
    for scenario in built_in_scenarios().values():
        table.add_row(f"[bold]{scenario.name}[/]", scenario.about)
    _out.print(table)


@app.command()
def new(
    directory: Annotated[Path, typer.Argument(help="Directory to make.")],
    scenario: Annotated[
        str, typer.Option(help="Scenario whose settings to start from, or a TOML file.")
    ] = "digits",
    clients: Annotated[int | None, typer.Option(help="Number of clients.")] = None,
    mode: ModeOption = None,
) -> None:
    """Write the app directory of a deployed federation: configuration only, no code.

    `flwr run DIRECTORY` then runs it on the SuperNodes that are connected.
    """
    from fedveil.server.new_app import write_app
    from fedveil.simulations.scenarios import find_scenario

    overrides: list[tuple[str, object]] = []
    if clients is not None:
        overrides.append(("federation.clients", clients))
    write_app(directory, find_scenario(scenario).config(overrides, mode))
    _out.print(f"wrote {directory}; see {directory / 'README.md'}", highlight=False)


def _fresh_folder(name: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path("runs") / f"{name}-{stamp}"
    number = 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{stamp}-{number}"
    return folder


@contextmanager
def _stop_on_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a wish to stop; the second stops at once."""
    wish = False

    def wished() -> bool:
        return wish

    def handle(*_: object) -> None:
        nonlocal wish
        if wish:
            raise KeyboardInterrupt
        wish = True
        _err.print("finishing the round; Ctrl-C again stops at once", highlight=False)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield wished
    except KeyboardInterrupt:
        _err.print("stopped in the middle of a round; --resume goes on from the last one")
        raise typer.Exit(_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, previous)


if __name__ == "__main__":
    main()

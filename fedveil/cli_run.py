"""The command `fedveil run`: a run of a kit's federation, with live progress."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tomli_w
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedveil.cli_kits import KitArgument, coordinator_environment, coordinator_kit
from fedveil.errors import FedveilError

if TYPE_CHECKING:
    from fedveil.config import Config
    from fedveil.server.provisioning import CoordinatorKit
    from fedveil.server.records import RoundRecord
    from fedveil.server.run_watch import ListedRun

__all__ = ["RunFailedError", "run"]

_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)

_DETACHED = 130
_PATIENCE = 60.0
"""Seconds to wait for a SuperLink that is just being started."""


class RunFailedError(FedveilError):
    """A run ended before its last round."""


def run(
    kit: KitArgument,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a setting of KIT/app, for example --set federation.rounds=20. May be "
            "repeated.",
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue a run that was stopped or killed.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where the data files of the task lie here, for the public test set."),
    ] = None,
) -> None:
    """Run the federation of a coordinator's kit, and show its rounds as they are committed.

    Submits KIT/app to the SuperLink that `fedveil server KIT` has started; the run folder is made
    under KIT/runs. Ctrl-C leaves the run alone and ends the view: `fedveil status KIT` shows it,
    `KIT/bin/flwr stop NUMBER` stops it. A run whose server was killed goes on from its last
    committed round with --resume.

    Plain `flwr run KIT/app` submits the same: see KIT/README.md.
    """
    from fedveil.server.flower_cli import FlowerCli
    from fedveil.server.provisioning import layout
    from fedveil.server.run_watch import committed_rounds, follow, submit

    place = kit.resolve()
    found = coordinator_kit(place)
    if resume is not None and settings:
        raise FedveilError("--resume goes on with the run's own settings: leave --set out")
    folder = _fresh_folder(place, found) if resume is None else _run_folder(resume)
    config = _config(place if resume is None else folder, settings or [])
    environment = coordinator_environment(place)
    _await_superlink(found.superlink_address, kit)
    own = {
        "out" if resume is None else "resume": str(folder),
        "roster": str(place / layout.ROSTER),
        **({} if data_dir is None else {"data-dir": str(data_dir.resolve())}),
    }
    with _app(found, config, own) as (app, told), FlowerCli(environment) as flower:
        number = submit(flower, app, found.connection, told)
        _err.print(
            f"run {number}: {config.task.name}, {config.federation.clients} clients, "
            f"{config.federation.rounds} rounds; its folder is {folder}",
            highlight=False,
        )
        with _Display(config.federation.rounds, len(committed_rounds(folder))) as display:
            try:
                with _warnings(number, found.connection, environment, display):
                    ended = follow(flower, found.connection, number, folder, display)
            except KeyboardInterrupt:
                _err.print(
                    f"the run goes on; see it with: fedveil status {kit}; stop it with: "
                    f"{kit}/bin/flwr stop {number}",
                    highlight=False,
                )
                raise typer.Exit(_DETACHED) from None
    _tell_end(ended, folder, kit, config, display.last_error)


def _await_superlink(address: str, kit: Path) -> None:
    from fedveil.server.provisioning.addresses import split_address
    from fedveil.server.reachable import answers

    host, port = split_address(address)
    if answers(host, port):
        return
    deadline = time.monotonic() + _PATIENCE
    with _err.status(f"waiting for the SuperLink at {escape(address)}"):
        while not answers(host, port):
            if time.monotonic() > deadline:
                raise FedveilError(
                    f"no SuperLink answers at {address} after {_PATIENCE:g} s; start it with: "
                    f"fedveil server {kit}"
                )
            time.sleep(0.2)


def _config(source: Path, settings: list[str]) -> Config:
    """Return the settings of a kit's app or of a run folder, the overrides applied and checked."""
    from fedveil.config import parse_config
    from fedveil.server.provisioning import layout
    from fedveil.settings import apply_override, parse_override, read_toml

    if (source / "config.toml").is_file():
        return parse_config(read_toml(source / "config.toml"), str(source / "config.toml"))
    path = source / layout.APP / "pyproject.toml"
    try:
        tree = dict(read_toml(path)["tool"]["flwr"]["app"]["config"])  # type: ignore[index]
    except (KeyError, TypeError):
        raise FedveilError(f"{path}: is no app of Fedveil; provision the kit again") from None
    tree.pop("run", None)
    for text in settings:
        tree = apply_override(tree, *parse_override(text))
    return parse_config(tree, str(path))


@contextmanager
def _app(
    kit: CoordinatorKit, config: Config, own: Mapping[str, str]
) -> Iterator[tuple[Path, Path]]:
    """Write what is submitted, for as long as it is submitted from: the app, and its run's own."""
    from fedveil.server.new_app import app_files

    with tempfile.TemporaryDirectory(prefix="fedveil-run-") as made:
        app, told = Path(made) / "app", Path(made) / "run.toml"
        app.mkdir()
        for name, content in app_files(kit.federation, config).items():
            (app / name).write_bytes(content)
        # A file, since Flower takes no quotation mark in a path that is given as text.
        told.write_text(tomli_w.dumps({"run": own}), encoding="utf-8")
        yield app, told


def _fresh_folder(kit: Path, found: CoordinatorKit) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = kit / "runs" / f"{found.federation}-{stamp}"
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{found.federation}-{stamp}-{number}")
    return folder


def _run_folder(named: Path) -> Path:
    from fedveil.server.run_info import SETTINGS_NAME

    folder = named.resolve()
    if not (folder / SETTINGS_NAME).is_file():
        raise FedveilError(f"{named}: is not a run folder; a kit's runs lie under KIT/runs")
    return folder


class _Display:
    """A bar in a terminal, else a line a round; warnings above it."""

    def __init__(self, rounds: int, done: int) -> None:
        self._rounds = rounds
        self._told: set[str] = set()
        self.last_error = ""
        self._bar = Progress(
            TextColumn("[bold]rounds"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=_err,
            disable=not _err.is_terminal,
        )
        self._task = self._bar.add_task("rounds", total=rounds, completed=done, figures="")

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def round_done(self, record: RoundRecord) -> None:
        """Move the bar by a round, or print its line."""
        from fedveil.console import epsilon_text, percent

        left_out = f" of {record.clients + record.failed}" if record.failed else ""
        figures = (
            f"clients {record.clients}{left_out}  accuracy {percent(record.accuracy)}  "
            f"epsilon {epsilon_text(record.epsilon)}"
        )
        self._bar.update(self._task, completed=record.round, figures=figures)
        if not _err.is_terminal:
            line = f"round {record.round}/{self._rounds}  {figures}  {record.seconds:.1f} s"
            _err.print(line, highlight=False)

    def status(self, status: str) -> None:
        """Print what the SuperLink says, until rounds say more."""
        if status in ("pending", "starting", "running"):
            self._bar.update(self._task, figures=status)

    def warning(self, text: str) -> None:
        """Print a warning of the server, once: its app logs each in two ways."""
        if text not in self._told:
            self._told.add(text)
            shown = f"[yellow]warning:[/] {escape(text)}"
            self._bar.console.print(shown, highlight=False, emoji=False)


class _WarningsOf(logging.Handler):
    def __init__(self, display: _Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            # The first line of an error says what; a traceback may follow.
            self._display.last_error = self._display.last_error or text
        else:
            self._display.warning(text)


@contextmanager
def _warnings(
    number: str, connection: str, environment: Mapping[str, str], display: _Display
) -> Iterator[None]:
    """Show what the server warns of, for as long as the run is followed."""
    from fedveil.children import Child

    log = logging.getLogger("fedveil.serverapp")
    log.propagate = False
    log.setLevel(logging.WARNING)
    handler = _WarningsOf(display)
    log.addHandler(handler)
    command = ["flwr", "log", number, connection, "--stream"]
    child = Child(command, environment, log)
    try:
        yield
    finally:
        child.end()
        log.removeHandler(handler)


def _tell_end(ended: ListedRun, folder: Path, kit: Path, config: Config, error: str) -> None:
    from fedveil.console import epsilon_text, percent
    from fedveil.server.run_watch import committed_rounds

    records = committed_rounds(folder)
    if not ended.is_complete:
        why = error or (ended.details if ended.details != "N/A" else ended.status)
        done = records[-1].round if records else 0
        again = f"fedveil run {kit}" + (f" --resume {folder}" if records else "")
        raise RunFailedError(
            f"the run ended after {done} of {config.federation.rounds} rounds ({why}); "
            f"{'go on' if records else 'begin anew'} with: {again}"
        )
    last = records[-1]
    claim = f"{epsilon_text(last.epsilon)} at delta = {config.dp.delta:g}"
    rows = {
        "accuracy": percent(last.accuracy),
        "epsilon": claim if last.epsilon is not None else "none: no privacy is claimed",
        "report": str(folder / "report.html"),
        "model": f"{folder / 'model'} (encrypted)",
    }
    for name, value in rows.items():
        _out.print(f"[bold]{name:<10}[/]{escape(value)}", highlight=False)

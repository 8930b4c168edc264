"""The command `fedveil run`: a run of a kit's federation, with live progress."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tomli_w
import typer

from fedveil.cli_kits import (
    KitArgument,
    LogFormatOption,
    coordinator_environment,
    coordinator_kit,
)
from fedveil.cli_run_views import LogView, PeopleView, RunView, warnings_of
from fedveil.errors import FedveilError
from fedveil.logs import LogFormat

if TYPE_CHECKING:
    from fedveil.config import Config
    from fedveil.server.provisioning import CoordinatorKit
    from fedveil.server.run_watch import ListedRun

__all__ = ["RunFailedError", "run"]

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
    log_format: LogFormatOption = LogFormat.TEXT,
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
    from fedveil.server.provisioning.addresses import split_address
    from fedveil.server.reachable import refuses
    from fedveil.server.run_submission import Submission
    from fedveil.server.run_watch import SuperLinkLostError, committed_rounds, follow

    place = kit.resolve()
    found = coordinator_kit(place)
    if resume is not None and settings:
        raise FedveilError("--resume goes on with the run's own settings: leave --set out")
    folder = _fresh_folder(place, found) if resume is None else _run_folder(resume)
    config = _config(place if resume is None else folder, settings or [])
    environment = coordinator_environment(place)
    view = LogView() if log_format is LogFormat.JSON else PeopleView(config.federation.rounds)
    _await_superlink(found.superlink_address, kit, view)
    _check_superlink(found.superlink_address, place / layout.CA, kit)
    own = {
        "out" if resume is None else "resume": str(folder),
        "roster": str(place / layout.ROSTER),
        **({} if data_dir is None else {"data-dir": str(data_dir.resolve())}),
    }
    closed = partial(refuses, *split_address(found.superlink_address))
    submission = Submission(place, found.connection, folder, is_resumed=resume is not None)
    with _app(found, config, own) as (app, told), FlowerCli(environment) as flower:
        number = submission.submit(flower, app, told, config)
        view.began(number, config, folder)
        with view.following(len(committed_rounds(folder))):
            try:
                with warnings_of(number, found.connection, environment, view):
                    ended = follow(flower, found.connection, number, folder, view, closed)
            except SuperLinkLostError as error:
                raise SuperLinkLostError(
                    f"{error}; where none runs, start one with: fedveil server {kit}; then "
                    f"{_go_on(folder, kit)}"
                ) from None
            except KeyboardInterrupt:
                submission.left(number)
                view.left(
                    f"the run goes on; see it with: fedveil status {kit}; stop it with: "
                    f"{kit}/bin/flwr stop {number}"
                )
                raise typer.Exit(_DETACHED) from None
    submission.ended(number, ended)
    _tell_end(ended, folder, kit, config, view)


def _await_superlink(address: str, kit: Path, view: RunView) -> None:
    from fedveil.server.provisioning.addresses import split_address
    from fedveil.server.reachable import answers

    host, port = split_address(address)
    if answers(host, port):
        return
    deadline = time.monotonic() + _PATIENCE
    with view.waiting(f"waiting for the SuperLink at {address}"):
        while not answers(host, port):
            if time.monotonic() > deadline:
                raise FedveilError(
                    f"no SuperLink answers at {address} after {_PATIENCE:g} s; start it with: "
                    f"fedveil server {kit}"
                )
            time.sleep(0.2)


def _check_superlink(address: str, authority: Path, kit: Path) -> None:
    from fedveil.server.provisioning.addresses import split_address
    from fedveil.server.reachable import tls_problem

    if problem := tls_problem(*split_address(address), authority):
        raise FedveilError(
            f"what answers at {address} is not the SuperLink of this kit: {problem}; is it another "
            f"federation's? Start this one's, on a port of its own, with: fedveil server {kit}"
        )


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


def _tell_end(ended: ListedRun, folder: Path, kit: Path, config: Config, view: RunView) -> None:
    from fedveil.console import epsilon_text, percent
    from fedveil.server.run_watch import committed_rounds

    records = committed_rounds(folder)
    if not ended.is_complete:
        why = view.last_error or (ended.details if ended.details != "N/A" else ended.status)
        done = records[-1].round if records else 0
        raise RunFailedError(
            f"the run ended after {done} of {config.federation.rounds} rounds ({why}); "
            f"{_go_on(folder, kit)}"
        )
    last = records[-1]
    claim = f"{epsilon_text(last.epsilon)} at delta = {config.dp.delta:g}"
    rows = {
        "accuracy": percent(last.accuracy),
        "epsilon": claim if last.epsilon is not None else "none: no privacy is claimed",
        "report": str(folder / "report.html"),
        "model": f"{folder / 'model'} (encrypted)",
    }
    view.ended(rows)


def _go_on(folder: Path, kit: Path) -> str:
    if (folder / "metrics.jsonl").is_file():
        return f"go on with: fedveil run {kit} --resume {folder}"
    return f"begin anew with: fedveil run {kit}"

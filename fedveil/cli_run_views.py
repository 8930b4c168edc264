"""How `fedveil run` shows what it follows: to people in a terminal, or as lines of a log."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from fedveil.config import Config
    from fedveil.server.records import RoundRecord

__all__ = ["LogView", "PeopleView", "RunView", "warnings_of"]

_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)
_log = logging.getLogger("fedveil.run")


class RunView(Protocol):
    """Whoever shows a run."""

    last_error: str
    """The first line of what the server said last as an error; empty before."""

    def waiting(self, what: str) -> AbstractContextManager[None]:
        """Show what is waited for while the block runs."""

    def following(self, done: int) -> AbstractContextManager[None]:
        """Show rounds while the block runs; so many are done already."""

    def began(self, number: str, config: Config, folder: Path) -> None:
        """Show that the run was submitted."""

    def round_done(self, record: RoundRecord) -> None:
        """Show a committed round."""

    def status(self, status: str) -> None:
        """Show what the SuperLink says of the run."""

    def warning(self, text: str) -> None:
        """Show a warning of the server."""

    def left(self, text: str) -> None:
        """Show how to find the run again, which goes on."""

    def ended(self, rows: Mapping[str, str]) -> None:
        """Show what came of the run."""


class PeopleView:
    """A bar in a terminal, else a line a round; warnings above it.

    Parameters
    ----------
    rounds : int
        Of the whole run.
    """

    def __init__(self, rounds: int) -> None:
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
        self._task = self._bar.add_task("rounds", total=rounds, figures="")

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show it as a moving line."""
        with _err.status(escape(what)):
            yield

    @contextmanager
    def following(self, done: int) -> Iterator[None]:
        """Show the bar."""
        self._bar.update(self._task, completed=done)
        with self._bar:
            yield

    def began(self, number: str, config: Config, folder: Path) -> None:
        """Print a line."""
        _err.print(escape(_begun(number, config, folder)), highlight=False)

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
        """Show it until rounds say more."""
        if status in ("pending", "starting", "running"):
            self._bar.update(self._task, figures=status)

    def warning(self, text: str) -> None:
        """Print it, once: the server's app logs each in two ways."""
        if text not in self._told:
            self._told.add(text)
            shown = f"[yellow]warning:[/] {escape(text)}"
            self._bar.console.print(shown, highlight=False, emoji=False)

    def left(self, text: str) -> None:
        """Print it."""
        _err.print(escape(text), highlight=False)

    def ended(self, rows: Mapping[str, str]) -> None:
        """Print the rows to standard output."""
        for name, value in rows.items():
            _out.print(f"[bold]{name:<10}[/]{escape(value)}", highlight=False)


class LogView:
    """A record of the log each; figures stand beside the message."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self.last_error = ""

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Log it."""
        _log.info("%s", what)
        yield

    @contextmanager
    def following(self, done: int) -> Iterator[None]:
        """Log how far the run is, if it has begun before."""
        if done:
            _log.info("%d rounds are committed already", done)
        yield

    def began(self, number: str, config: Config, folder: Path) -> None:
        """Log it."""
        fields = {"run": number, "folder": str(folder)}
        _log.info("%s", _begun(number, config, folder), extra={"fields": fields})

    def round_done(self, record: RoundRecord) -> None:
        """Log it with its figures."""
        fields = record.model_dump(exclude_none=True)
        _log.info("round %d is committed", record.round, extra={"fields": fields})

    def status(self, status: str) -> None:
        """Log it."""
        _log.info("the SuperLink says that the run is %s", status)

    def warning(self, text: str) -> None:
        """Log it, once."""
        if text not in self._told:
            self._told.add(text)
            _log.warning("%s", text)

    def left(self, text: str) -> None:
        """Log it."""
        _log.info("%s", text)

    def ended(self, rows: Mapping[str, str]) -> None:
        """Log it with the rows."""
        _log.info("the run is complete", extra={"fields": dict(rows)})


def _begun(number: str, config: Config, folder: Path) -> str:
    return (
        f"run {number}: {config.task.name}, {config.federation.clients} clients, "
        f"{config.federation.rounds} rounds; its folder is {folder}"
    )


class _WarningsOf(logging.Handler):
    def __init__(self, view: RunView) -> None:
        super().__init__(logging.WARNING)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            # The first line of an error says what; a traceback may follow.
            self._view.last_error = self._view.last_error or text
        else:
            self._view.warning(text)


@contextmanager
def warnings_of(
    number: str, connection: str, environment: Mapping[str, str], view: RunView
) -> Iterator[None]:
    """Show what the server warns of, for as long as the run is followed.

    Parameters
    ----------
    number : str
        The run, as the SuperLink counts it.
    connection : str
        The SuperLink's name in Flower's configuration.
    environment : Mapping of str to str
        Of Flower's command.
    view : RunView
        Shows it.
    """
    from fedveil.children import Child

    log = logging.getLogger("fedveil.serverapp")
    log.propagate = False
    log.setLevel(logging.WARNING)
    handler = _WarningsOf(view)
    log.addHandler(handler)
    command = ["flwr", "log", number, connection, "--stream"]
    child = Child(command, environment, log)
    try:
        yield
    finally:
        child.end()
        log.removeHandler(handler)

"""The command `fedveil status`: what runs from a kit now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedveil.cli_kits import KitArgument, coordinator_environment
from fedveil.errors import FedveilError

if TYPE_CHECKING:
    from fedveil.server.flower_cli import FlowerCli
    from fedveil.server.kit_status import FolderStatus, RefusalSeen
    from fedveil.server.provisioning import ClientKit, CoordinatorKit
    from fedveil.server.run_watch import ListedRun

__all__ = ["status"]

_out = Console(soft_wrap=True)
_CONNECT_WITHIN = 3.0
_MOST_REFUSALS = 5
_FOLDER_COLUMNS = ("folder", "run", "rounds", "clients", "epsilon")


@dataclass(frozen=True)
class _Party:
    name: str
    state: str


def status(
    kit: KitArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what runs from a kit: of a coordinator the parties and the runs, of a client its node.

    Of each run the round, its clients and epsilon; who was refused or dropped last, and why.

    Exit code 1 where nothing runs: no SuperLink answers, or no node is up.
    """
    from fedveil.server.provisioning import ClientKit, CoordinatorKit, read_any_kit

    folder = kit.resolve()
    found = read_any_kit(folder)
    if isinstance(found, CoordinatorKit):
        is_up = _show_coordinator(folder, found, as_json=as_json)
    elif isinstance(found, ClientKit):
        is_up = _show_client(folder, found, as_json=as_json)
    else:
        raise FedveilError(
            f"{kit}: is the kit of an inference service; it tells of itself: fedveil status is "
            "for coordinators and clients"
        )
    if not is_up:
        raise typer.Exit(1)


def _show_coordinator(folder: Path, kit: CoordinatorKit, *, as_json: bool) -> bool:
    from fedveil.server.flower_cli import FlowerCli, FlowerCliError
    from fedveil.server.kit_status import events_of, folder_status, folders_by_run, refusals
    from fedveil.server.provisioning import settle
    from fedveil.server.run_watch import listed_runs

    settle(folder)
    parties: list[_Party] = []
    runs: list[ListedRun] = []
    trouble = ""
    try:
        with FlowerCli(coordinator_environment(folder)) as flower:
            parties = _parties(folder, flower, kit.connection)
            runs = listed_runs(flower, kit.connection)
    except FlowerCliError as error:
        trouble = str(error)
    events = events_of(folder)
    at = {Path(place): number for number, place in folders_by_run(events).items()}
    folders = [
        (at.get(path.parent, ""), folder_status(path.parent))
        for path in sorted((folder / "runs").glob("*/run.json"))
    ]
    last = refusals(events, _MOST_REFUSALS)
    if as_json:
        told = {
            "federation": kit.federation,
            "superlink": kit.superlink_address,
            "answers": not trouble,
            "parties": [asdict(party) for party in parties],
            "runs": [run.model_dump() for run in runs],
            "folders": [{"run": number, **asdict(status)} for number, status in folders],
            "refusals": [asdict(refusal) for refusal in last],
        }
        print(json.dumps(told))  # noqa: T201
        return not trouble
    said = "answers" if not trouble else f"does not answer: {trouble}"
    _line("superlink", f"{kit.superlink_address} {said}")
    if trouble:
        _line("", f"start it with: fedveil server {folder}")
    for table in (
        _table("Parties", ("party", "state"), [(p.name, p.state) for p in parties]),
        _table("Runs", ("run", "status", "began"), [(r.number, r.status, r.began) for r in runs]),
        _table("Run folders", _FOLDER_COLUMNS, [_folder_row(*one) for one in folders]),
        _refusal_table(last),
    ):
        if table.row_count:
            _out.print(table)
    return not trouble


def _folder_row(number: str, status: FolderStatus) -> tuple[str, ...]:
    from fedveil.console import epsilon_text

    if status.trouble:
        return status.folder, number, status.trouble, "", ""
    of_all = f"/{status.rounds}" if status.rounds else ""
    left_out = f" of {status.clients + status.left_out}" if status.left_out else ""
    return (
        status.folder,
        number,
        f"{status.round}{of_all}",
        f"{status.clients}{left_out}",
        epsilon_text(status.epsilon),
    )


def _refusal_table(last: list[RefusalSeen]) -> Table:
    rows = [(one.time, one.run, one.who, one.kind, one.why) for one in last]
    return _table("Refused or dropped last", ("time", "run", "who", "kind", "why"), rows)


def _parties(folder: Path, flower: FlowerCli, connection: str) -> list[_Party]:
    """Return every party of the kit, and what the SuperLink says of its node."""
    from fedveil.server.provisioning import layout
    from fedveil.server.superlink_service import read_registered

    nodes = flower.ask("supernode", "list", connection)["nodes"]
    assert isinstance(nodes, list)  # noqa: S101  # as Flower documents
    states = {str(node["node-id"]): str(node["status"]) for node in nodes}
    registered = read_registered(folder)
    names = sorted(path.stem for path in (folder / layout.SUPERNODES).glob("*.pub"))
    # "registered" is what Flower calls a node that was never seen.
    words = {"registered": "not seen yet"}
    found = [(name, states.get(registered.get(name, ""), "not registered")) for name in names]
    return [_Party(name, words.get(state, state)) for name, state in found]


def _show_client(folder: Path, kit: ClientKit, *, as_json: bool) -> bool:
    from fedveil.console import epsilon_text
    from fedveil.server.kit_status import events_of, refusals
    from fedveil.server.provisioning.addresses import split_address
    from fedveil.server.reachable import answers

    is_up = answers(kit.runtime_host, kit.runtime_port, _CONNECT_WITHIN)
    reaches = answers(*split_address(kit.superlink_address), _CONNECT_WITHIN)
    events = events_of(folder)
    last = refusals(events, _MOST_REFUSALS)
    task = next((e for e in reversed(events) if e.get("event") == "task-end"), {})
    spent = _spent(folder)
    if as_json:
        told = {
            "federation": kit.federation,
            "client": kit.name,
            "node": is_up,
            "superlink": kit.superlink_address,
            "reachable": reaches,
            "last": task,
            "epsilon": spent,
            "refusals": [asdict(refusal) for refusal in last],
        }
        print(json.dumps(told))  # noqa: T201
        return is_up
    _line("node", "up" if is_up else f"not up; start it with: fedveil client {folder}")
    _line("superlink", f"{kit.superlink_address} {'answers' if reaches else 'does not answer'}")
    if task:
        _line("last", f"{task.get('time')} {task.get('message', '')}: {task.get('outcome')}")
    for name, epsilon in spent.items():
        _line("spent", f"epsilon {epsilon_text(epsilon)} of the data set {name}, over all runs")
    table = _refusal_table(last)
    if table.row_count:
        _out.print(table)
    return is_up


def _spent(folder: Path) -> dict[str, float | None]:
    """Return the epsilon that each data set has released, over all runs; None if it is exact."""
    from fedveil.client.policy_file import read_policy
    from fedveil.privacy.budget import view_of
    from fedveil.privacy.ledger import Ledger
    from fedveil.server.provisioning import layout

    snapshot = Ledger(folder / layout.LEDGER, folder / "marks").read()
    view = view_of(snapshot, read_policy(folder / layout.POLICY), None)
    return {one.dataset: one.epsilon for one in view.datasets}


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    from fedveil.strategies.failures import one_line

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        # What others sent must not steer the terminal.
        table.add_row(*(escape(one_line(value)) for value in row))
    return table


def _line(name: str, text: str) -> None:
    _out.print(f"[bold]{name:<10}[/]{escape(text)}", highlight=False)

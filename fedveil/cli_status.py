"""The command `fedveil status`: what runs from a kit now."""

from __future__ import annotations

import json
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
    from fedveil.server.provisioning import ClientKit, CoordinatorKit
    from fedveil.server.run_watch import ListedRun

__all__ = ["status"]

_out = Console(soft_wrap=True)
_CONNECT_WITHIN = 3.0


@dataclass(frozen=True)
class _Party:
    name: str
    state: str


def status(
    kit: KitArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what runs from a kit: of a coordinator the parties and the runs, of a client its node.

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
    folders = _run_folders(folder)
    if as_json:
        told = {
            "federation": kit.federation,
            "superlink": kit.superlink_address,
            "answers": not trouble,
            "parties": [asdict(party) for party in parties],
            "runs": [run.model_dump() for run in runs],
            "folders": folders,
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
        _table(
            "Run folders",
            ("folder", "rounds", "clients", "epsilon"),
            [tuple(str(value) for value in row.values()) for row in folders],
        ),
    ):
        if table.row_count:
            _out.print(table)
    return not trouble


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


def _run_folders(folder: Path) -> list[dict[str, object]]:
    from fedveil.console import epsilon_text
    from fedveil.server.run_watch import committed_rounds

    rows: list[dict[str, object]] = []
    for path in sorted((folder / "runs").glob("*/run.json")):
        records = committed_rounds(path.parent)
        last = records[-1] if records else None
        rows.append(
            {
                "folder": path.parent.name,
                "rounds": last.round if last else 0,
                "clients": last.clients if last else 0,
                "epsilon": epsilon_text(last.epsilon if last else None),
            }
        )
    return rows


def _show_client(folder: Path, kit: ClientKit, *, as_json: bool) -> bool:
    from fedveil.server.provisioning.addresses import split_address
    from fedveil.server.reachable import answers

    is_up = answers(kit.runtime_host, kit.runtime_port, _CONNECT_WITHIN)
    reaches = answers(*split_address(kit.superlink_address), _CONNECT_WITHIN)
    if as_json:
        told = {
            "federation": kit.federation,
            "client": kit.name,
            "node": is_up,
            "superlink": kit.superlink_address,
            "reachable": reaches,
        }
        print(json.dumps(told))  # noqa: T201
        return is_up
    _line("node", "up" if is_up else f"not up; start it with: fedveil client {folder}")
    _line("superlink", f"{kit.superlink_address} {'answers' if reaches else 'does not answer'}")
    _line("spent", f"FEDVEIL_HOME={folder} fedveil budget")
    return is_up


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(escape(value) for value in row))
    return table


def _line(name: str, text: str) -> None:
    _out.print(f"[bold]{name:<10}[/]{escape(text)}", highlight=False)

"""The commands `fedveil provision` and `fedveil kit`: the kits of a federation's parties."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from fedveil.config import Config
    from fedveil.server.provisioning import Change, FederationFile, Outcome

__all__ = ["kit", "provision"]

_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)

kit = typer.Typer(
    help="Look at a kit that `fedveil provision` made: what is wrong with it, what it says.",
    no_args_is_help=True,
)

KitPath = Annotated[Path, typer.Argument(metavar="KIT", help="The folder of one party's kit.")]


def provision(
    federation: Annotated[
        Path, typer.Argument(metavar="FILE", help="The federation: see docs/deployment.md.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the kits are, or shall be.")
    ] = Path("kits"),
    revoke: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A party that is no longer in FILE. May be repeated."),
    ] = None,
    renew: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Make a new certificate for the key of coordinator, of an inference service, or "
            "of the authority itself (ca). May be repeated.",
        ),
    ] = None,
) -> None:
    """Make one kit a party of a federation: keys, certificates, roster, policy, start scripts.

    Say it again after a change of FILE: new parties get kits, and of the others only the files that
    follow from the change are new. Private keys, policies and what owners edited are never touched.
    A kit that was handed over may be deleted here; new files for it then come in updates/NAME.

    The authority's keys, in ca/, are what can add a client: keep them offline.

    Example: `fedveil provision federation.toml --out kits`.
    """
    from fedveil.server.provisioning import provision as make_kits
    from fedveil.server.provisioning import read_federation

    file = read_federation(federation)
    outcome = make_kits(
        file,
        lambda clients: _settings(federation, file, clients),
        out,
        now=datetime.now(UTC).replace(microsecond=0),
        revoke=revoke or (),
        renew=renew or (),
    )
    _tell(outcome, file)


@kit.command("check")
def kit_check(folder: KitPath) -> None:
    """Say what is wrong with a kit, one line a finding; the exit code is 1 if anything is.

    Looked at are the dates, names and chain of certificates, whether keys match, who may read the
    files, the roster and its signature, the policy, and the versions.
    """
    from fedveil.server.provisioning import check_kit, read_any_kit

    findings = check_kit(folder)
    for finding in findings:
        color = "bold red" if finding.is_wrong else "bold yellow"
        word = "wrong" if finding.is_wrong else "note"
        _out.print(f"[{color}]{word}:[/] {escape(finding.text)}", highlight=False)
    if any(finding.is_wrong for finding in findings):
        raise typer.Exit(1)
    found = read_any_kit(folder)
    _out.print(
        f"{folder}: the kit of {found.name} ({found.party} of {found.federation}) can be used",
        highlight=False,
    )


@kit.command("settle")
def kit_settle(folder: KitPath) -> None:
    """Write the paths of this machine into a kit that was moved here.

    They stand in the systemd unit and in Flower's configuration only.
    """
    from fedveil.server.provisioning import settle

    for path in settle(folder):
        _out.print(f"wrote {path}", highlight=False)


@kit.command("node-config")
def kit_node_config(folder: KitPath) -> None:
    """Print the node configuration of a client's kit, for `flower-supernode --node-config`."""
    from fedveil.server.provisioning import node_config_text

    print(node_config_text(folder))  # noqa: T201


def _settings(path: Path, file: FederationFile, clients: int) -> Config:
    from fedveil.settings import flatten
    from fedveil.simulations.scenarios import built_in_scenarios, find_scenario

    named = file.run.scenario
    if named not in built_in_scenarios():
        # A file of settings is found from the federation's file, wherever the command is said.
        named = str(path.parent / named)
    overrides = [*flatten(file.run.settings).items(), ("federation.clients", clients)]
    return find_scenario(named).config(overrides)


def _tell(outcome: Outcome, file: FederationFile) -> None:
    for change in outcome.changes:
        _out.print(_line(change, file), highlight=False)
    if not outcome.changes:
        _out.print("nothing has changed", highlight=False)
    for note in outcome.notes:
        _err.print(f"[bold yellow]note:[/] {escape(note)}", highlight=False)
    _out.print(
        f"roster: version {outcome.serial}, {len(file.clients)} clients. The authority's keys are "
        f"in {outcome.authority}: whoever has them can add clients; keep that folder offline",
        highlight=False,
        markup=False,
    )


def _line(change: Change, file: FederationFile) -> str:
    name, folder = change.party, change.folder
    if change.what == "made":
        to = "stays here" if name == "ca" else f"for {name} alone"
        return escape(f"made {folder}, {to}")
    if change.what == "revoked":
        return escape(f"revoked {name}; its kit is now {folder}")
    listed = ", ".join(change.files)
    text = f"changed for {name}, in {folder}: {listed or 'nothing new'}"
    if change.removed:
        text += f"; no longer there: {', '.join(change.removed)}"
    if name in file.clients or name in file.inference:
        text += f"; hand that to {name}"
    return escape(text)

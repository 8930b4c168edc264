"""The commands `fedveil keys` and `fedveil roster`: who a client is, and whom it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedveil.home import default_identity_file, default_roster_file
from fedveil.rosters import (
    create_identity,
    load_identity,
    parse_public_key,
    read_roster,
    show_public_key,
    write_roster,
)
from fedveil.secagg.errors import RosterError
from fedveil.secagg.identity import Roster

__all__ = ["keys", "roster"]

keys = typer.Typer(
    help="Make and show the identity that a client takes part in secure aggregation with.",
    no_args_is_help=True,
)
roster = typer.Typer(
    help=(
        "Keep the list of clients that this one knows. Its own updates are summed with theirs and "
        "nobody else's; the list never comes from the server."
    ),
    no_args_is_help=True,
)

_out = Console(soft_wrap=True)

RosterFile = Annotated[
    Path | None,
    typer.Option("--roster", help="Roster file. Default: roster.toml in $FEDVEIL_HOME."),
]


@keys.command("new-identity")
def new_identity(
    name: Annotated[str, typer.Argument(help="This client's name, for example hospital-a.")],
    out: Annotated[
        Path | None, typer.Option(help="File to make. Default: identity.json in $FEDVEIL_HOME.")
    ] = None,
) -> None:
    """Make this client's identity: a private key in a file of mode 0600.

    NAME is what the others know this client by, for example hospital-a. Prints the public key.
    Pass it on to every other data owner by a way that you both trust, not by the server; they add
    it with `fedveil roster add NAME KEY`.
    """
    path = out or default_identity_file()
    identity = create_identity(path, name)
    _out.print(f"wrote {path}; keep it here, and keep it secret", highlight=False)
    _show(identity.name, identity.public_key)


@keys.command("show-identity")
def show_identity(
    identity: Annotated[
        Path | None, typer.Option(help="File. Default: identity.json in $FEDVEIL_HOME.")
    ] = None,
) -> None:
    """Print this client's name and public key, as the others need them."""
    found = load_identity(identity or default_identity_file())
    _show(found.name, found.public_key)


@roster.command("add")
def roster_add(
    name: Annotated[str, typer.Argument(help="The other client's name.")],
    key: Annotated[str, typer.Argument(help="Its public key, 44 characters of base64.")],
    path: RosterFile = None,
) -> None:
    """Add a client by NAME and KEY, as `fedveil keys new-identity` prints them on its machine.

    A name that is there with another key is refused; remove it first.
    """
    file = path or default_roster_file()
    known = dict(_read_or_empty(file).keys)
    given = parse_public_key(key)
    if known.get(name, given) != given:
        raise RosterError(
            f"{name} is in {file} with another key; if it has a new one, remove it first: "
            f"fedveil roster remove {name}"
        )
    write_roster(file, Roster({**known, name: given}))
    _out.print(f"{file}: {len(known | {name: given})} clients", highlight=False)


@roster.command("list")
def roster_list(path: RosterFile = None) -> None:
    """List the clients that this one knows, with their public keys."""
    table = Table("client", "public key")
    for name, key in sorted(read_roster(path or default_roster_file()).keys.items()):
        table.add_row(name, show_public_key(key))
    _out.print(table)


@roster.command("remove")
def roster_remove(
    name: Annotated[str, typer.Argument(help="The client's name.")], path: RosterFile = None
) -> None:
    """Remove the client NAME: from the next session on, this one is summed with it no more."""
    file = path or default_roster_file()
    known = dict(read_roster(file).keys)
    if name not in known:
        raise RosterError(f"{name} is not in {file}; it lists: {', '.join(sorted(known))}")
    del known[name]
    write_roster(file, Roster(known))
    _out.print(f"{file}: {len(known)} clients", highlight=False)


def _read_or_empty(path: Path) -> Roster:
    return read_roster(path) if path.exists() or path.is_symlink() else Roster({})


def _show(name: str, key: bytes) -> None:
    _out.print(f"fedveil roster add {name} {show_public_key(key)}", highlight=False)

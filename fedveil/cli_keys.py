"""The commands `fedveil keys` and `fedveil roster`: identities, and keys of model stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedveil.cli_models import KekOption, RunPath
from fedveil.errors import FedveilError
from fedveil.home import (
    default_identity_file,
    default_key_file,
    default_roster_file,
    default_signing_key_file,
)
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

if TYPE_CHECKING:
    from fedveil.vault.store import ModelStore

__all__ = ["keys", "roster"]

keys = typer.Typer(
    help=(
        "Make, show and exchange keys: the identity that a client takes part in secure aggregation "
        "with, and the key-encryption keys that open a run's models."
    ),
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


@keys.command("new-signer")
def new_signer() -> None:
    """Make the key that this coordinator's models are signed with, where there is none yet.

    `fedveil simulate` and a run of `flwr run` make it by themselves. Keep a copy: without it no run
    can be continued.
    """
    from fedveil.server.storage import own_signing_key

    _out.print(own_signing_key().verify_key.to_text(), highlight=False)


@keys.command("show-signer")
def show_signer() -> None:
    """Print the key that this coordinator's models are checked with.

    Whoever serves or keeps the models pins it: `fedveil models verify RUN --signer KEY`. It is not
    secret; pass it on by a way that nobody can change.
    """
    from fedveil.vault.signing import load_signing_key

    key = load_signing_key(default_signing_key_file()).verify_key
    _out.print(key.to_text(), highlight=False)


@keys.command("new")
def new_key(
    out: Annotated[
        Path | None, typer.Argument(help="File to make. Default: model.key in $FEDVEIL_HOME/keys.")
    ] = None,
) -> None:
    """Make a key file of mode 0600 that model stores can be encrypted with (--kek file:PATH).

    Keep a copy of it apart from the stores: whoever loses it has lost the models.
    """
    from fedveil.server.storage import make_key_file

    path = out or default_key_file()
    key_id = make_key_file(path)
    _out.print(f"wrote {path}; it is key {key_id}, named file:{path.absolute()}", highlight=False)


@keys.command("list")
def list_keys(run: RunPath, kek: KekOption = None) -> None:
    """List the key-encryption keys that open the models of RUN."""
    from fedveil.server.run_store import open_model_store

    _show_keks(open_model_store(run, kek))


@keys.command("add")
def add_key(
    run: RunPath,
    to: Annotated[str, typer.Option("--to", metavar="SPEC", help="The key to add.")],
    kek: KekOption = None,
) -> None:
    """Let one more key-encryption key open the models of RUN, for example one kept as a backup."""
    from fedveil.server.run_store import open_model_store
    from fedveil.vault.kek.registry import open_kek

    with open_model_store(run, kek) as store:
        _out.print("The key to add:", highlight=False)
        store.add_kek(open_kek(to))
        _show_keks(store)


@keys.command("rotate")
def rotate_key(
    run: RunPath,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="SPEC",
            help="The key that takes the place of the old one. Default: its newest version.",
        ),
    ] = None,
    kek: KekOption = None,
) -> None:
    """Exchange the key-encryption key of RUN; only keys.json is written, no model.

    With --to SPEC that key takes the place of the one in use, and the run remembers it. Without,
    the model key is wrapped anew under the newest version of the key in use, as Vault and AWS keep
    versions. Whoever has the old key and an old copy of keys.json still has the model key: run
    `fedveil models rotate` as well if they must not read what comes.
    """
    from fedveil.server.run_store import open_model_store, remember_kek
    from fedveil.vault.kek.registry import open_kek

    with open_model_store(run, kek) as store:
        if to is None:
            store.rewrap_kek()
        else:
            _out.print("The new key:", highlight=False)
            store.replace_kek(open_kek(to))
            remember_kek(run, to)
        _show_keks(store)


@keys.command("retire")
def retire_key(
    run: RunPath,
    key: Annotated[str, typer.Option("--key", help="Its name, as `fedveil keys list` shows it.")],
    kek: KekOption = None,
) -> None:
    """Let a key-encryption key open the models of RUN no longer; the key itself is not needed.

    Another one is: name it with --kek if the run's own is the one to retire, and the run remembers
    that one from then on. Whoever has the retired key and an old copy of keys.json still has the
    model key: run `fedveil models rotate` as well if they must not read what comes.
    """
    from fedveil.server.run_store import open_model_store, remember_kek

    with open_model_store(run, kek) as store:
        listed = store.keks()
        ids = {text: one for name, one in listed for text in (one, f"{name}:{one}")}
        if key not in ids:
            raise FedveilError(f"{run}: no key {key} opens it; see `fedveil keys list {run}`")
        if ids[key] == store.opened_by and len(listed) > 1:
            raise FedveilError(
                f"{run}: {key} is the key that this command opens it with; name another with --kek"
            )
        store.retire_kek(ids[key])
        if kek is not None:
            remember_kek(run, kek)
        _show_keks(store)


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


def _show_keks(store: ModelStore) -> None:
    table = Table("provider", "key")
    table.columns[-1].overflow = "fold"
    for provider, key_id in store.keks():
        table.add_row(provider, key_id)
    _out.print(table)


def _read_or_empty(path: Path) -> Roster:
    return read_roster(path) if path.exists() or path.is_symlink() else Roster({})


def _show(name: str, key: bytes) -> None:
    _out.print(f"fedveil roster add {name} {show_public_key(key)}", highlight=False)

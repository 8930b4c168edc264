"""The commands `fedveil tokens`: who may use a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedveil.errors import FedveilError
from fedveil.home import default_tokens_file, own_file

__all__ = ["tokens"]

_out = Console(soft_wrap=True)

tokens = typer.Typer(
    help=(
        "Make, list and revoke the tokens that callers of `fedveil serve --tokens FILE` send.\n\n"
        "The file keeps a hash of each token. A running service sees a change within seconds."
    ),
    no_args_is_help=True,
)

TokensPath = Annotated[
    Path | None,
    typer.Option("--file", help="The file of tokens. Default: tokens.json in $FEDVEIL_HOME."),
]


@tokens.command("new")
def tokens_new(
    name: Annotated[str, typer.Argument(help="Whose it is, for example web-shop.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="infer, metadata or admin; may be repeated. Default: infer and metadata."
        ),
    ] = None,
    file: TokensPath = None,
) -> None:
    """Make a token and print it. It is shown this once: only its hash is kept."""
    from fedveil.server.inference.tokens import SCOPES, Scope, add_token

    known: dict[str, Scope] = {"infer": "infer", "metadata": "metadata", "admin": "admin"}
    wanted = scope or ["infer", "metadata"]
    for given in wanted:
        if given not in known:
            raise FedveilError(f"--scope {given}: a scope is one of {', '.join(SCOPES)}")
    scopes = tuple(known[given] for given in dict.fromkeys(wanted))
    path = file or own_file(default_tokens_file())
    print(add_token(path, name, scopes))  # noqa: T201


@tokens.command("list")
def tokens_list(file: TokensPath = None) -> None:
    """List the tokens: names, scopes and when they were made."""
    from fedveil.server.inference.tokens import read_tokens

    table = Table("name", "scopes", "created")
    for token in read_tokens(file or default_tokens_file()):
        table.add_row(token.name, ", ".join(token.scopes), token.created)
    _out.print(table)


@tokens.command("revoke")
def tokens_revoke(
    name: Annotated[str, typer.Argument(help="Whose token is revoked.")], file: TokensPath = None
) -> None:
    """Revoke a token; a running service refuses it within seconds."""
    from fedveil.server.inference.tokens import remove_token

    remove_token(file or default_tokens_file(), name)
    _out.print(f"revoked {name}", highlight=False)

"""The commands `fedveil models`: look into, check, share, rotate and destroy encrypted models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedveil.errors import FedveilError

if TYPE_CHECKING:
    from fedveil.vault.signing import VerifyKey

__all__ = ["KekOption", "RunPath", "SignerOption", "models", "parse_signer"]

models = typer.Typer(
    help=(
        "Look into, check, share and destroy encrypted models.\n\n"
        "RUN is a run folder, for example one under runs/. Every command checks what it reads: the "
        "coordinator's signature, every byte of the weights it uses, and that no older state of "
        "the store was put back."
    ),
    no_args_is_help=True,
)

_out = Console(soft_wrap=True)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
KekOption = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help=(
            "Key-encryption key of the model store: file:PATH, passphrase:, vault:KEY or aws:KEY. "
            "Default: the one that the run was made with."
        ),
    ),
]
SignerOption = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help=(
            "Whose signature counts, as `fedveil keys show-signer` prints it on the coordinator's "
            "machine. Default: this machine's own."
        ),
    ),
]
RoundOption = Annotated[int | None, typer.Option("--round", help="Round. Default: the newest.")]


def parse_signer(text: str | None) -> VerifyKey | None:
    """Return the verify key that an option names, if it is given."""
    from fedveil.vault.errors import SignatureError
    from fedveil.vault.signing import VerifyKey

    if text is None:
        return None
    try:
        return VerifyKey.from_text(text)
    except SignatureError as error:
        raise SignatureError(
            f"--signer {text:.60}: {error}, as `fedveil keys show-signer` prints it"
        ) from None


@models.command("list")
def models_list(run: RunPath, kek: KekOption = None, signer: SignerOption = None) -> None:
    """List the rounds in a run's model store."""
    from fedveil.console import epsilon_text, percent
    from fedveil.server.run_folder import RunFolder

    folder = RunFolder.open(run, kek, parse_signer(signer))
    kept = set(folder.kept)
    table = Table("round", "accuracy", "epsilon", "file")
    for record in folder.records:
        if record.round in kept:
            table.add_row(
                str(record.round),
                percent(record.accuracy),
                epsilon_text(record.epsilon),
                folder.model_path(record.round).name,
            )
    _out.print(table)
    _out.print(f"The files are in {folder.model_path(0).parent}.", highlight=False, markup=False)


@models.command("show")
def models_show(
    run: RunPath,
    round_: RoundOption = None,
    kek: KekOption = None,
    signer: SignerOption = None,
) -> None:
    """Show what a round says about itself: what is signed, how it is encrypted, who can open it."""
    from fedveil.server.run_store import open_model_store

    store = open_model_store(run, kek, parse_signer(signer))
    info = store.show(store.newest() if round_ is None else round_)
    header, verify_key = info.header, store.verify_key
    rows = {
        "run": header.run,
        "round": str(header.round),
        "created": header.created,
        "weights": f"{header.plaintext_bytes} bytes, {info.file_bytes} encrypted",
        "follows": header.previous or "nothing: the first round",
        "strategy state": "kept" if info.has_state else "not kept",
        "signed by": verify_key.to_text() if info.signed and verify_key else "nobody",
        "model key": ", ".join(info.model_keys),
        "opened by": ", ".join(_kek_name(*kek) for kek in store.keks()),
        **{
            name: f"{value}"
            for name, value in sorted(header.meta.items())
            if not isinstance(value, str)
        },
    }
    for name, value in rows.items():
        _out.print(f"[bold]{escape(name):<15}[/]{escape(value)}", highlight=False)


@models.command("verify")
def models_verify(
    run: RunPath,
    kek: KekOption = None,
    signer: SignerOption = None,
    signatures_only: Annotated[
        bool,
        typer.Option(
            "--signatures-only",
            help="Check signatures and order without a key that opens the model; needs --signer.",
        ),
    ] = False,
) -> None:
    """Decrypt and check every round of a run; exit with 1 if any fails.

    With --signatures-only nothing is decrypted: whoever keeps a copy of the store can check that it
    is the coordinator's, whole and in order, without being able to read it. That it is not an older
    copy only the newest round's number tells then.
    """
    from fedveil.server.run_store import model_store_folder, open_model_store
    from fedveil.vault.checks import check_signatures

    pinned = parse_signer(signer)
    if signatures_only:
        if pinned is None:
            raise FedveilError(
                "--signatures-only needs --signer KEY: the key that stands in the store itself "
                "proves nothing"
            )
        results = check_signatures(model_store_folder(run), pinned)
    else:
        results = open_model_store(run, kek, pinned).verify()
    for result in results:
        state = "ok" if result.problem is None else f"[bold red]{escape(result.problem)}[/]"
        _out.print(f"round {result.round}: {state}", highlight=False)
    if any(result.problem is not None for result in results):
        raise FedveilError(f"{run}: a checkpoint is damaged; the rounds marked ok can be used")
    newest = f"the newest is round {results[-1].round}" if results else "no round yet"
    _out.print(f"{len(results)} rounds; {newest}", highlight=False)


@models.command("export")
def models_export(
    run: RunPath,
    to: Annotated[
        Path, typer.Option("--to", help="What to make: model.safetensors, or a folder with --for.")
    ],
    round_: RoundOption = None,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Yes, write the weights unencrypted.")
    ] = False,
    recipient: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="SPEC",
            help="Encrypt for this key-encryption key, for example passphrase: or vault:KEY.",
        ),
    ] = None,
    kek: KekOption = None,
    signer: SignerOption = None,
) -> None:
    """Take a round's model out of a run: encrypted for somebody else, or in the clear.

    With --for SPEC a model store of its own is made, encrypted under a fresh model key that only
    SPEC opens, and signed by this machine's coordinator, who thereby vouches for it: another
    coordinator's model is signed anew only if --signer names that coordinator. With --plaintext an
    ordinary safetensors file is written.
    """
    from fedveil.server.run_store import open_model_store
    from fedveil.server.storage import create_store, own_verify_key
    from fedveil.vault.export import export_plaintext
    from fedveil.vault.kek.registry import open_kek

    if plaintext == (recipient is not None):
        raise FedveilError(
            "say how the model may leave: --for SPEC encrypts it for somebody else's key, "
            "--plaintext writes it unencrypted"
        )
    trusted = parse_signer(signer)
    if recipient is not None and own_verify_key() is None:
        raise FedveilError(
            "an encrypted copy is signed by who makes it, and this machine has no signing key: "
            "export on the coordinator's, or make a key with `fedveil keys new-signer`"
        )
    store = open_model_store(run, kek, trusted)
    chosen = store.newest() if round_ is None else round_
    if recipient is None:
        export_plaintext(store, chosen, to)
        _out.print(f"wrote {to}, unencrypted", highlight=False)
        return
    model, theirs = store.load(chosen), open_kek(recipient)
    with create_store(to, theirs, store.run) as copy:
        copy.save(chosen, model.tensors, model.header.meta, None)
        (opened_by,) = copy.keks()
        signed_by = copy.verify_key.to_text() if copy.verify_key else "nobody"
    _out.print(
        f"wrote {to}: round {chosen}, opened by {_kek_name(*opened_by)}, signed by {signed_by}",
        highlight=False,
    )


@models.command("rotate")
def models_rotate(
    run: RunPath,
    kek: KekOption = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="SPEC",
            help="Another key-encryption key that opens the store now. May be repeated.",
        ),
    ] = None,
) -> None:
    """Exchange the model key: whoever kept an old copy of keys.json cannot open later rounds.

    Weights are neither decrypted nor written; under 200 bytes of each file change. All
    key-encryption keys that open the store must be given (`fedveil keys list RUN` names them). An
    exchange that is interrupted leaves a store that opens, and is finished by the next one.
    """
    from fedveil.server.run_store import open_model_store
    from fedveil.vault.kek.registry import open_kek

    with open_model_store(run, kek) as store:
        key_id = store.rotate_model_key([open_kek(spec) for spec in also or []])
    _out.print(f"the model key is {key_id} now", highlight=False)


@models.command("destroy")
def models_destroy(
    run: RunPath,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Destroy the model key of a run, so that no copy of its models can be read again.

    This cannot be undone. keys.json is overwritten and removed; every encrypted copy of every
    round, also in backups, is unreadable from then on, unless a copy of keys.json lies there too.
    Copies of keys.json, snapshots and journals of file systems, and blocks that a solid-state disk
    keeps, are not reached: where those matter, destroy the key-encryption keys as well.
    """
    from fedveil.server.run_store import model_store_folder
    from fedveil.vault.destroy import destroy_store

    folder = model_store_folder(run)
    if not yes:
        typer.confirm(f"Destroy every model in {folder} for good?", abort=True)
    date = destroy_store(folder)
    _out.print(
        f"destroyed on {date}; a backup that holds {folder / 'keys.json'} still opens its rounds: "
        "remove it there too, or destroy the key-encryption keys",
        highlight=False,
    )


@models.command("gc")
def models_gc(
    run: RunPath,
    keep_last: Annotated[int, typer.Option(min=1, help="How many of the newest rounds stay.")],
    keep_best: Annotated[
        int, typer.Option(min=0, help="How many of the best rounds stay beside them.")
    ] = 0,
    by: Annotated[
        str, typer.Option(help="What is best: highest accuracy, or lowest loss.")
    ] = "accuracy",
    kek: KekOption = None,
) -> None:
    """Remove old rounds' models; figures (in metrics.jsonl) and the privacy journal stay.

    For example `fedveil models gc RUN --keep-last 2 --keep-best 1`.
    """
    from fedveil.server.run_store import open_model_store
    from fedveil.vault.retention import KeepBest

    if by not in ("accuracy", "loss"):
        raise FedveilError(f"--by {by}: rounds are chosen by accuracy or by loss")
    best = KeepBest(by, keep_best, by == "accuracy") if keep_best else None
    with open_model_store(run, kek) as store:
        removed = store.gc(keep_last, best)
        left = store.rounds()
    _out.print(
        f"removed {len(removed)} rounds; kept: {', '.join(map(str, left)) or 'none'}",
        highlight=False,
    )


def _kek_name(provider: str, key_id: str) -> str:
    """Return a key-encryption key as `fedveil keys retire` takes it."""
    # The public name of a passphrase says already what it is.
    return key_id if key_id.startswith(f"{provider}-") else f"{provider}:{key_id}"

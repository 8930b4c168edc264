"""The command `fedveil predict`: asks a running service, and shows its answers to people."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from fedveil.errors import FedveilError

if TYPE_CHECKING:
    from fedveil.cli_predict_client import Claim, Metadata, ServiceClient
    from fedveil.cli_predict_inputs import Inputs
    from fedveil.cli_predict_readings import Reading
    from fedveil.server.inference.about import About
    from fedveil.server.inference.oip import Array

__all__ = ["predict"]

_TOKEN_VARIABLE = "FEDVEIL_TOKEN"  # noqa: S105  # its name, and no token
_MOST_TOKEN = 4096
_BATCH_ROWS = 1024

_out = Console(soft_wrap=True)
_err = Console(stderr=True, soft_wrap=True)


def predict(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The service, for example http://127.0.0.1:8080.")
    ],
    task: Annotated[
        str | None, typer.Option(help="The task that is expected. Default: what is served.")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="N|N:M",
            help="Rows of the task's public test set. Default, without --input and --text: 0:5.",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="FILE|-",
            help="A file of rows: .csv (with the names of the fields, or numbers as the model "
            "takes them), .npy, .json, .txt or an image; - for standard input.",
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(help="A text, for a task that takes one.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the data files of the task lie, for --rows.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="A file of mode 0600 with the token. Default: the variable FEDVEIL_TOKEN."
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option("--ca", help="The service's certificate, or its authority's (PEM)."),
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="A client certificate to show (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Let a token cross the network without TLS."),
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that one answer may take.")
    ] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Ask a running service, and show what it answers and what privacy it claims.

    Examples: `fedveil predict http://127.0.0.1:8080`, or `fedveil predict https://models.example
    --token-file token --input patients.csv`.
    """
    from fedveil.cli_predict_access import Access, AskError
    from fedveil.cli_predict_client import ServiceClient
    from fedveil.cli_predict_readings import read_answers

    if sum(given is not None for given in (rows, source, text)) > 1:
        raise AskError("--rows, --input and --text are three ways to ask; give one of them")
    access = Access(_token(token_file), ca, cert, key, insecure, timeout)
    with ServiceClient(url, access) as client:
        about = client.about()
        if task is not None and task != about.model:
            raise AskError(f"{url}: serves {about.model}, not {task}")
        if not about.classes:
            raise AskError(
                f"{url}: the answers of {about.model} are no classes; ask over the protocol itself"
            )
        metadata = client.metadata(about.model)
        inputs = _inputs(about, metadata, rows, source, text, data_dir)
        reading = read_answers(
            _asked(client, about, metadata, inputs), metadata.parameters.outputs, len(about.classes)
        )
    if as_json:
        print(json.dumps(_fields(about, metadata.parameters, inputs, reading)))  # noqa: T201
    else:
        _show(about, metadata.parameters, inputs, reading)


def _token(file: Path | None) -> str | None:
    from fedveil.vault.errors import KeyFileError, KeyFileMissingError
    from fedveil.vault.keyfile import read_secret_file

    if file is None:
        return os.environ.get(_TOKEN_VARIABLE)
    try:
        return read_secret_file(file, _MOST_TOKEN).decode("ascii", "replace").strip()
    except KeyFileMissingError:
        raise FedveilError(
            f"--token-file {file}: there is no such file; save in it what `fedveil tokens new` "
            "printed, with mode 0600"
        ) from None
    except KeyFileError as error:
        raise FedveilError(f"--token-file: {error}") from None


def _inputs(
    about: About,
    metadata: Metadata,
    rows: str | None,
    source: str | None,
    text: str | None,
    data_dir: Path | None,
) -> Inputs:
    from fedveil.cli_predict_inputs import parse_rows, read_file, read_public, read_text

    if source is not None:
        return read_file(about, metadata.input, source)
    if text is not None:
        return read_text(about, metadata.input, text)
    wanted = parse_rows(rows or "0:5")
    with _err.status("Loading the task ..."):
        return read_public(about, metadata.input, wanted, data_dir)


def _asked(client: ServiceClient, about: About, metadata: Metadata, inputs: Inputs) -> Array:
    import numpy as np

    rows = inputs.rows
    # Half of what a request may hold is left for its JSON.
    fitting = about.body_bytes // (2 * max(rows[0].nbytes, 1))
    size = max(1, min(about.rows, _BATCH_ROWS, fitting))
    starts = range(0, len(rows), size)
    answers = [
        client.infer(metadata, rows[start : start + size])
        for start in track(
            starts,
            "asking",
            console=_err,
            transient=True,
            disable=len(starts) == 1 or not _err.is_terminal,
        )
    ]
    return np.concatenate(answers)


def _show(about: About, claim: Claim, inputs: Inputs, reading: Reading) -> None:
    table = Table("row", "answer", *(() if inputs.labels is None else ("true",)))
    if reading.shares is not None:
        table.add_column("probability", justify="right")
    for place, label in enumerate(reading.labels.tolist()):
        cells = [str(inputs.first + place), _name(about, label)]
        if inputs.labels is not None:
            truth = int(inputs.labels[place])
            name = _name(about, truth)
            cells.append(name if truth == label else f"[bold red]{name}[/]")
        if reading.shares is not None:
            cells.append(f"{100 * reading.shares[place, label]:.1f} %")
        table.add_row(*cells)
    _out.print(table)
    if inputs.labels is not None:
        right = int((reading.labels == inputs.labels).sum())
        _out.print(f"{right} of {len(inputs.labels)} answers are the true class", highlight=False)
    _out.print(
        f"{_safe(about.model)}, round {claim.round} of run {_safe(claim.run)}", highlight=False
    )
    _out.print(_privacy(claim), highlight=False)


def _safe(text: str) -> str:
    from fedveil.cli_predict_access import printable

    return escape(printable(text))


def _name(about: About, label: int) -> str:
    return _safe(about.classes[label]) if 0 <= label < len(about.classes) else str(label)


def _privacy(claim: Claim) -> str:
    from fedveil.privacy.report_words import rounded_up

    if claim.epsilon is None or claim.delta is None:
        return "no privacy is claimed for the records that it was trained on"
    return (
        f"epsilon {rounded_up(claim.epsilon)} at delta = {claim.delta:g}, for every "
        f"{_safe(claim.privacy_unit)}, as the service claims"
    )


def _fields(about: About, claim: Claim, inputs: Inputs, reading: Reading) -> dict[str, object]:
    answers = []
    for place, label in enumerate(reading.labels.tolist()):
        answer: dict[str, object] = {
            "row": inputs.first + place,
            "class": label,
            "name": about.classes[label],
        }
        if reading.shares is not None:
            answer["probability"] = float(reading.shares[place, label])
            answer["probabilities"] = reading.shares[place].tolist()
        if inputs.labels is not None:
            answer["true"] = int(inputs.labels[place])
        answers.append(answer)
    return {"model": about.model, **claim.model_dump(), "answers": answers}

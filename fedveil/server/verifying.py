"""A report checked: its signature, every figure from its events, and the run that it is of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from fedveil.errors import FedveilError
from fedveil.privacy.journal import Intent
from fedveil.privacy.report import SCHEMA_VERSION, Report, replay
from fedveil.server.reporting import REPORT_LABEL, REPORT_NAME, report_of
from fedveil.server.run_folder import RunFolder
from fedveil.server.signed import read_signed
from fedveil.vault.signing import VerifyKey

__all__ = ["ReportError", "verify_report"]


class ReportError(FedveilError):
    """A report is not what its events, or its run, make it."""


def verify_report(path: Path, kek: str | None = None, signer: VerifyKey | None = None) -> Report:
    """Check a report.

    Parameters
    ----------
    path : Path
        A run folder, or a ``report.json`` alone. Of a run folder, journal, metrics, model and
        audit are held against the report too.
    kek : str, optional
        A KEK that opens the model store, as `RunFolder.open` takes it.
    signer : VerifyKey, optional
        Whose signature counts; by default this machine's own.

    Raises
    ------
    ReportError
        If a figure does not follow from the events, or the run holds something else.
    SignatureError
        If it was signed by somebody else, or changed.
    FedveilError
        If report or run cannot be read.
    """
    file = path if path.is_file() else path / REPORT_NAME
    fields = read_signed(file, REPORT_LABEL, signer)
    version = fields.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ReportError(
            f"{file}: is of report schema {version}, and this version reads {SCHEMA_VERSION}; "
            f"`fedveil report {path}` computes it anew"
        )
    try:
        report = Report.model_validate(fields)
    except (ValidationError, FedveilError) as error:
        raise ReportError(f"{file}: is not a report ({_where(error)})") from None
    _compare(report, replay(report), file, "its events give")
    _check_accounted(report, file)
    if path != file:
        run = report_of(RunFolder.open(path, kek, signer))
        _compare(report, run, file, "the run's own files give")
    return report


def _check_accounted(report: Report, file: Path) -> None:
    """Refuse releases that are not those of the mechanism that the report describes."""
    m = report.facts.mechanism
    rates = {"record": m.sampling_rate, "client": 1.0}
    made = None if report.skellam is None else report.skellam.sensitivity
    planned = (
        m.steps_per_round if m.mode == "record/local" else 1,
        2 if m.metrics == "noisy" else 1,
    )
    for event in report.events:
        if not isinstance(event, Intent) or m.unit == "none":
            continue
        training = event.releases[0] if event.releases else None
        if training is None or training.sampling_rate != rates[m.unit]:
            raise ReportError(
                f"{file}: round {event.round} is not accounted at the sampling rate "
                f"{rates[m.unit]:g} of mode {report.mode}"
            )
        if (training.count, len(event.releases)) != planned:
            raise ReportError(
                f"{file}: round {event.round} is not accounted for what a round of mode "
                f'{report.mode} with metrics = "{m.metrics}" releases: {planned[0]} of training'
                + (", and the metrics" if planned[1] == 2 else "")
            )
        found = training.integers
        if (found is None) != (m.shared is None) or (
            found is not None
            and made is not None
            and not (
                math.isclose(found.l2, made.l2, rel_tol=1e-9)
                and math.isclose(found.l1, made.l1, rel_tol=1e-9)
                and found.coordinates == made.coordinates
            )
        ):
            raise ReportError(
                f"{file}: round {event.round} is accounted for another sensitivity than the "
                f"mechanism of mode {report.mode} has"
            )


def _compare(told: Report, found: Report, file: Path, who: str) -> None:
    for name, a, b in _differences(told.model_dump(mode="json"), found.model_dump(mode="json")):
        raise ReportError(f"{file}: {name} is {_short(a)}, and {who} {_short(b)}")


def _differences(
    told: object, found: object, name: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Yield each place where two trees differ: its name, and both values."""
    if isinstance(told, Mapping) and isinstance(found, Mapping):
        for key in [*told, *(k for k in found if k not in told)]:
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(told.get(key), found.get(key), inner)
    elif isinstance(told, list) and isinstance(found, list) and len(told) == len(found):
        for index, (a, b) in enumerate(zip(told, found, strict=True)):
            yield from _differences(a, b, f"{name}[{index}]")
    elif isinstance(told, float) and isinstance(found, float):
        # Another machine's libraries may differ in the last digits.
        if not math.isclose(told, found, rel_tol=1e-9):
            yield name, told, found
    elif told != found:
        yield name, told, found


def _short(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{len(value)} entries"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _where(error: ValidationError | FedveilError) -> str:
    if isinstance(error, FedveilError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"

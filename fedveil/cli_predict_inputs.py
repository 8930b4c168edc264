"""What `fedveil predict` asks about: rows of a public test set, a file, or a text."""

from __future__ import annotations

import csv
import io
import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from fedveil.cli_predict_access import AskError
from fedveil.server.inference.about import About
from fedveil.server.inference.oip import Array, TensorSpec
from fedveil.tasks.errors import TaskError
from fedveil.tasks.forms import FieldsForm, ImageForm, TextForm

__all__ = ["STDIN", "Inputs", "parse_rows", "read_file", "read_public", "read_text"]

STDIN = "-"

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_RAGGED = "has lists of unequal length in it"
_MAGIC = {b"\x93NUMPY": ".npy", b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}


@dataclass(frozen=True, eq=False)
class Inputs:
    """Rows for the model.

    Parameters
    ----------
    rows : ndarray, shape (n, ...)
        Of the model's type and shape.
    first : int
        The number of the first row.
    labels : ndarray of int64, shape (n,), or None
        True classes, where they are known.
    """

    rows: Array
    first: int = 0
    labels: NDArray[np.int64] | None = None


def parse_rows(text: str) -> slice:
    """Return the rows that ``--rows`` names: ``7``, ``0:5``, ``5:`` or ``:``.

    Raises
    ------
    AskError
        If it names none.
    """
    start, colon, stop = text.partition(":")
    if all(part.isascii() and (part.isdigit() or not part) for part in (start, stop)):
        if not colon and start:
            return slice(int(start), int(start) + 1)
        if colon and not (start and stop and int(stop) <= int(start)):
            return slice(int(start or 0), int(stop) if stop else None)
    raise AskError(f"--rows {text}: is no row, as 7, and no range of rows, as 0:5")


def read_public(about: About, spec: TensorSpec, rows: slice, data_dir: Path | None) -> Inputs:
    """Read rows of the task's public test set, as the run made it.

    Raises
    ------
    AskError
        If there is no such set, or it has no such row.
    TaskError
        If the task is not installed, or its data are not there.
    """
    from fedveil.tasks.partition import PartitionSpec, Scheme
    from fedveil.tasks.registry import create_task

    schemes: dict[str, Scheme] = {scheme: scheme for scheme in get_args(Scheme)}
    task = create_task(
        about.model,
        seed=0,
        partition=PartitionSpec(schemes.get(about.scheme, "iid")),
        data_dir=data_dir,
        options=about.options,
    )
    public = task.public_test()
    if public is None:
        raise AskError(f"the task {about.model} has no public test set; give --input FILE")
    first = rows.start
    if first >= len(public):
        raise AskError(
            f"row {first} does not exist; the public test set of {about.model} has rows 0 to "
            f"{len(public) - 1}"
        )
    labels = public.y[rows].numpy().astype(np.int64)
    found = _fitting(public.x[rows].numpy(), spec)
    return Inputs(found, first, labels if about.classes else None)


def read_text(about: About, spec: TensorSpec, text: str) -> Inputs:
    """Return the row for a text.

    Raises
    ------
    AskError
        If the model takes none.
    """
    if not isinstance(about.form, TextForm):
        raise AskError(f"{about.model} takes no text; give --rows or --input FILE")
    return Inputs(_fitting(np.array([about.form.encode(text)]), spec))


def read_file(about: About, spec: TensorSpec, name: str) -> Inputs:
    """Read rows from a file, or from standard input where the name is ``-``.

    Raises
    ------
    AskError
        If it cannot be read, or does not fit the model.
    """
    content, suffix = _content(name, is_text=isinstance(about.form, TextForm))
    try:
        if suffix == ".npy":
            return Inputs(_fitting(_numpy(content), spec))
        if suffix in _IMAGES:
            return Inputs(_fitting(_image(content, about), spec))
        text = content.decode("utf-8")
        if suffix == ".json":
            return Inputs(_json(text, about, spec))
        if suffix == ".csv":
            return Inputs(_csv(text, about, spec))
        return read_text(about, spec, text)
    except UnicodeDecodeError:
        raise AskError(f"{_shown(name)}: is no text in UTF-8") from None
    except (AskError, TaskError) as error:
        raise AskError(f"{_shown(name)}: {error}") from None


def _shown(name: str) -> str:
    return "standard input" if name == STDIN else name


def _content(name: str, *, is_text: bool) -> tuple[bytes, str]:
    if name == STDIN:
        content = sys.stdin.buffer.read()
        for magic, suffix in _MAGIC.items():
            if content.startswith(magic):
                return content, suffix
        if is_text:
            return content, ".txt"
        return content, ".json" if content.lstrip()[:1] in (b"[", b"{") else ".csv"
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".json", ".csv", ".txt", *_IMAGES):
        raise AskError(f"{name}: is of no known kind; take .csv, .npy, .json, .txt or an image")
    try:
        return path.read_bytes(), suffix
    except OSError as error:
        raise AskError(f"{name}: cannot be read ({error.strerror})") from None


def _numpy(content: bytes) -> Array:
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise AskError("is no array of numpy") from None
    if not isinstance(found, np.ndarray):
        raise AskError("holds several arrays; save one with numpy.save")
    return found


def _image(content: bytes, about: About) -> Array:
    from PIL import Image

    form = about.form
    if not isinstance(form, ImageForm):
        raise AskError(f"{about.model} takes no images; give .csv, .npy or .json")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                grey = image.convert("L").resize((form.width, form.height), Image.Resampling.BOX)
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise AskError("is no image that can be read, or a giant one") from None
    return np.asarray(grey, dtype=np.float32)[np.newaxis] / np.float32(255)


def _json(text: str, about: About, spec: TensorSpec) -> Array:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise AskError(
            f"is no valid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from None
    except (ValueError, RecursionError):
        raise AskError("is no valid JSON: nested too deeply, or a number too long") from None
    form = about.form
    rows = found if isinstance(found, list) else [found]
    if rows and all(isinstance(row, dict) for row in rows) and isinstance(form, FieldsForm):
        rows = [form.encode({name: str(value) for name, value in row.items()}) for row in rows]
    elif rows and all(isinstance(row, str) for row in rows) and isinstance(form, TextForm):
        rows = [form.encode(row) for row in rows]
    try:
        return _fitting(np.array(rows), spec)
    except ValueError:
        raise AskError(_unequal(rows)) from None


def _unequal(rows: list[object]) -> str:
    """Say which row is not as the first one is."""
    first = _described(rows[0])
    for number, row in enumerate(rows, start=1):
        found = _described(row)
        if found != first or found == _RAGGED:
            return f"row {number} {found}, and the first one {first}"
    return "its rows are not equally long lists of numbers"


def _described(row: object) -> str:
    try:
        shape = np.array(row).shape
    except ValueError:
        return _RAGGED
    if len(shape) == 1:
        return f"has {shape[0]} values"
    return f"has the shape {list(shape)}" if shape else "is no list"


def _csv(text: str, about: About, spec: TensorSpec) -> Array:
    lines = [line for line in csv.reader(io.StringIO(text)) if line]
    if not lines:
        raise AskError("holds no rows")
    names = None if _is_numbers(lines[0]) else [name.strip() for name in lines[0]]
    form = about.form
    if names is not None and not isinstance(form, FieldsForm):
        raise AskError(
            f"begins with names, but {about.model} has no named fields; give numbers only"
        )
    rows: list[list[float]] = []
    for number, line in enumerate(lines if names is None else lines[1:], start=1):
        if names is not None and isinstance(form, FieldsForm):
            if len(line) != len(names):
                raise AskError(f"row {number} has {len(line)} values under {len(names)} names")
            cells = [cell.strip() for cell in line]
            rows.append(form.encode(dict(zip(names, cells, strict=True))))
        elif _is_numbers(line) and len(line) == len(lines[0]):
            rows.append([float(cell) for cell in line])
        else:
            raise AskError(f"row {number} is not {len(lines[0])} numbers, as the first one")
    return _fitting(np.array(rows), spec)


def _is_numbers(line: list[str]) -> bool:
    try:
        return all(float(cell) is not None for cell in line)
    except ValueError:
        return False


def _fitting(found: Array, spec: TensorSpec) -> Array:
    """Return rows of the model's type and shape; one row may come without its first axis."""
    values = int(np.prod(spec.row_shape))
    if found.dtype.kind not in "biuf":
        raise AskError("holds something else than numbers")
    if found.shape == spec.row_shape or found.shape == (values,):
        found = found[np.newaxis]
    if found.ndim == 0 or len(found) == 0:
        raise AskError("holds no rows")
    if found.shape[1:] != spec.row_shape and found[0].size != values:
        shape = list(found.shape[1:])
        raise AskError(
            f"rows of shape {shape} do not fit the model, whose rows are {list(spec.row_shape)}"
        )
    rows = found.reshape(len(found), *spec.row_shape)
    if spec.numpy.kind in "iu" and not (np.isfinite(rows).all() and (rows == np.rint(rows)).all()):
        raise AskError(f"holds fractions, and the model takes {spec.dtype}")
    with np.errstate(over="ignore"):
        fitting: Array = np.ascontiguousarray(rows.astype(spec.numpy))
    if fitting.dtype.kind == "f" and not np.isfinite(fitting).all():
        raise AskError("holds NaN, infinity, or numbers too large for the model")
    return fitting

"""What the service says to people: how to give an input, and what the classes are called."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.oip import Limits, TensorSpec
from fedveil.tasks.forms import FieldsForm, Form, ImageForm, NumberField, TextForm

if TYPE_CHECKING:
    from fedveil.tasks.base import Task

__all__ = ["About", "about_task"]

_MOST_FIELDS = 256


class About(BaseModel):
    """What a page or a command line needs beside the protocol's own metadata.

    Parameters
    ----------
    model : str
        The model that is served.
    classes : tuple of str
        Names by class; empty where the model does not tell classes apart.
    form : FieldsForm, ImageForm, TextForm or None
        How people give an input; None where nobody could type it.
    scheme : str
        Partition scheme of the run.
    options : dict of str to str or float
        Options of the task, so that others can make its public test set as the run did.
    rows, body_bytes : int
        What one request may hold at most.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    classes: tuple[str, ...]
    form: Form | None
    scheme: str
    options: dict[str, str | float]
    rows: Annotated[int, Field(ge=1)]
    body_bytes: Annotated[int, Field(ge=1)]


def about_task(task: Task, inputs: TensorSpec, outputs: TensorSpec, limits: Limits) -> About:
    """Describe a task.

    Parameters
    ----------
    task : Task
        What is served.
    inputs, outputs : TensorSpec
        What its model takes and gives.
    limits : Limits
        Of a request.

    Raises
    ------
    ServeError
        If its form or its names of classes are not those of the model.
    """
    return About(
        model=task.name,
        classes=_classes(task, outputs),
        form=_form(task, inputs),
        scheme=task.partition.scheme,
        options=dict(task.options),
        rows=limits.rows,
        body_bytes=limits.body_bytes,
    )


def _classes(task: Task, outputs: TensorSpec) -> tuple[str, ...]:
    values = math.prod(outputs.row_shape)
    is_one_logit = values == 1
    if not is_one_logit and len(outputs.row_shape) != 1:
        return ()
    count = 2 if is_one_logit else values
    names = task.class_names
    if names and len(names) != count:
        raise ServeError(
            f"the task {task.name} names {len(names)} classes, but its model gives {count}"
        )
    unnamed = ("no", "yes") if is_one_logit else tuple(map(str, range(count)))
    return names or unnamed


def _form(task: Task, inputs: TensorSpec) -> FieldsForm | ImageForm | TextForm | None:
    values = math.prod(inputs.row_shape)
    form = task.form()
    if form is None:
        return _numbered(values, inputs) if 0 < values <= _MOST_FIELDS else None
    match form:
        case FieldsForm():
            given = form.width
        case ImageForm():
            given = form.height * form.width
        case TextForm():
            given = form.length
    if given != values:
        raise ServeError(
            f"the form of task {task.name} gives {given} values, but its model takes {values}"
        )
    return form


def _numbered(values: int, inputs: TensorSpec) -> FieldsForm:
    high = 1.0 if inputs.below is None else float(inputs.below - 1)
    fields = tuple(
        NumberField(name=f"input {place}", low=0, high=high, typical=0)
        for place in range(1, values + 1)
    )
    return FieldsForm(fields=fields)

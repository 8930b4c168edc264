"""What people are told of a task, and what is refused about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedveil.server.inference.about import About, about_task
from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.oip import Limits, TensorSpec
from fedveil.tasks.base import Task
from fedveil.tasks.breast_cancer import BreastCancer
from fedveil.tasks.digits import Digits
from fedveil.tasks.forms import FieldsForm, ImageForm
from fedveil.tasks.partition import PartitionSpec

IID = PartitionSpec("iid")
PIXELS = TensorSpec("input", "FP32", (64,))
LOGITS = TensorSpec("output", "FP32", (10,))


def changed(base: type[Task], **more: object) -> Task:
    return type("Changed", (base,), more)(seed=0, partition=IID)


def without_form(_: Task) -> None:
    return None


def test_a_task_is_described() -> None:
    found = about_task(Digits(seed=0, partition=IID), PIXELS, LOGITS, Limits(rows=7))
    assert found.classes == tuple("0123456789")
    assert found.form == ImageForm(height=8, width=8)
    assert (found.model, found.scheme, found.rows) == ("digits", "iid", 7)
    assert found.options["model"] == "linear"
    assert About.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("row_shape", "classes"), [((1,), ("no", "yes")), ((), ("no", "yes")), ((5, 2), ())]
)
def test_classes_without_names(row_shape: tuple[int, ...], classes: tuple[str, ...]) -> None:
    output = TensorSpec("output", "FP32", row_shape)
    assert about_task(Digits(seed=0, partition=IID), PIXELS, output, Limits()).classes == classes


@pytest.mark.parametrize("below", [None, 30])
def test_a_task_without_a_form_has_numbered_fields(below: int | None) -> None:
    task = changed(Digits, form=without_form)
    form = about_task(task, TensorSpec("input", "INT64", (8,), below), LOGITS, Limits()).form
    assert isinstance(form, FieldsForm)
    assert [field.name for field in form.fields] == [f"input {place}" for place in range(1, 9)]
    assert form.encode({f"input {place}": str(place) for place in range(1, 9)}) == [*range(1, 9)]
    many = TensorSpec("input", "FP32", (3, 224, 224))
    assert about_task(task, many, LOGITS, Limits()).form is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: (changed(Digits, class_names=("a", "b")), PIXELS, LOGITS),
            "the task digits names 2 classes, but its model gives 10",
        ),
        (
            lambda: (Digits(seed=0, partition=IID), TensorSpec("input", "FP32", (65,)), LOGITS),
            "the form of task digits gives 64 values, but its model takes 65",
        ),
        (
            lambda: (BreastCancer(seed=0, partition=IID), PIXELS, TensorSpec("o", "FP32", (1,))),
            "the form of task breast-cancer gives 30 values, but its model takes 64",
        ),
    ],
)
def test_a_task_that_contradicts_its_model_is_refused(
    make: Callable[[], tuple[Task, TensorSpec, TensorSpec]], says: str
) -> None:
    with pytest.raises(ServeError, match=says):
        about_task(*make(), Limits())

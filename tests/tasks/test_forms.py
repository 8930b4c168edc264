from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.datasets import load_breast_cancer

from fedveil.tasks import adult, heart_disease
from fedveil.tasks.adult import Adult
from fedveil.tasks.breast_cancer import BreastCancer
from fedveil.tasks.errors import TaskError
from fedveil.tasks.forms import ChoiceField, FieldsForm, NumberField, TextForm
from fedveil.tasks.heart_disease import HeartDisease
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task, task_names

IID = PartitionSpec("iid")


@pytest.mark.parametrize("name", task_names())
def test_a_built_in_task_says_how_its_inputs_are_given(name: str) -> None:
    scheme = "natural" if name == "heart-disease" else "iid"
    task = create_task(name, seed=0, partition=PartitionSpec(scheme))
    form = task.form()
    assert form is not None
    width = {
        "fields": lambda: form.width,
        "image": lambda: form.width * form.height,
        "text": lambda: form.length,
    }[form.kind]()
    assert width == math.prod(task.model_inputs().row_shape)
    assert type(form).model_validate_json(form.model_dump_json()) == form


def test_the_form_of_breast_cancer_is_its_preprocessing() -> None:
    task = BreastCancer(seed=0, partition=IID)
    form = task.form()
    raw, _ = load_breast_cancer(return_X_y=True)
    names = [field.name for field in form.fields]
    found = [form.encode(dict(zip(names, map(str, row), strict=True))) for row in raw[:50]]
    np.testing.assert_allclose(np.float32(found), task.inputs(raw[:50]).numpy(), atol=1e-6)
    published = [name.replace(" error", "") for name in load_breast_cancer().feature_names]
    assert [name.replace("error of ", "") for name in names] == published


def test_the_form_of_adult_is_its_preprocessing(data_dir: Callable[[str], Path]) -> None:
    form = Adult(seed=0, partition=IID).form()
    lines = (data_dir("adult") / "adult.data").read_text().splitlines()[:200]
    for line in lines:
        row = dict(zip(adult._COLUMNS, line.split(", "), strict=True))
        asked = {field.name: row[field.name] for field in form.fields}
        np.testing.assert_allclose(form.encode(asked), adult._features(row), atol=1e-6)


def test_the_form_of_heart_disease_is_its_preprocessing() -> None:
    """A row written by hand, and what the task's own parser makes of it."""
    task = HeartDisease(seed=0, partition=PartitionSpec("natural"))
    form = task.form()
    assert form is not None
    line = b"63.0,1.0,3.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0\n"
    x, y = heart_disease._parse(line)
    expected = heart_disease._examples(
        x, y, heart_disease._PUBLIC_CENTRE, heart_disease._PUBLIC_SCALE
    ).x.numpy()
    person = {
        "age": "63",
        "sex": "male",
        "resting blood pressure": "145",
        "cholesterol": "233",
        "fasting blood sugar above 120 mg/dl": "yes",
        "highest heart rate": "150",
        "angina on exertion": "no",
        "ST depression": "2.3",
        "chest pain": "other pain",
        "resting ECG": "left ventricular hypertrophy",
    }
    np.testing.assert_allclose([form.encode(person)], expected, atol=1e-6)
    local = HeartDisease(
        seed=0, partition=PartitionSpec("natural"), options={"standardise": "local"}
    )
    assert local.form() is None


FORM = FieldsForm(
    fields=(
        NumberField(name="size", low=0, high=10, typical=5, offset=5, scale=5),
        NumberField(name="money", low=0, high=9, typical=0, logarithmic=True),
        ChoiceField(name="kind", levels=("a", "b", "c")),
    )
)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"size": "1", "money": "1"}, "has no 'kind'; the fields are: size, money, kind"),
        ({"size": "1", "money": "1", "kind": "a", "x": "1"}, "has 'x'"),
        ({"size": "one", "money": "1", "kind": "a"}, "size: 'one' is no number"),
        ({"size": "inf", "money": "1", "kind": "a"}, "size: 'inf' is no number"),
        ({"size": "1", "money": "-1", "kind": "a"}, "money: '-1' is no number from 0 on"),
        ({"size": "1", "money": "1", "kind": "d"}, "kind: 'd' is none of a, b, c"),
    ],
)
def test_what_does_not_fit_a_form_is_refused(row: dict[str, str], says: str) -> None:
    with pytest.raises(TaskError, match=says.replace("(", r"\(")):
        FORM.encode(row)


def test_fields_follow_one_another() -> None:
    found = FORM.encode({"kind": "b", "money": "0", "size": "10"})
    assert found == [1.0, 0.0, 0.0, 1.0, 0.0]
    with pytest.raises(ValidationError, match="low <= typical <= high"):
        NumberField(name="size", low=1, high=0, typical=0)


@given(st.text(max_size=12))
def test_a_text_becomes_as_many_codes_as_the_model_takes(text: str) -> None:
    form = TextForm(alphabet="\nab", length=5)
    codes = form.encode(text)
    known = {"\n": 1, "a": 2, "b": 3}
    expected = [known.get(one, 0) for one in text][-5:]
    assert codes == [1] * (5 - len(expected)) + expected

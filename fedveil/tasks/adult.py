"""The task `adult`: who earns more than 50,000 dollars a year (US census of 1994)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedveil.tasks.base import ModelInputs
from fedveil.tasks.forms import ChoiceField, FieldsForm, NumberField
from fedveil.tasks.models import linear, tanh_mlp
from fedveil.tasks.objectives import BinaryTask
from fedveil.tasks.options import Choice, Option
from fedveil.tasks.pooled import CLIENT_TEST_FRACTION, Pool, PooledTask

__all__ = ["Adult"]

_COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status"),
    *("occupation", "relationship", "race", "sex", "capital-gain", "capital-loss"),
    *("hours-per-week", "native-country", "income"),
)

# The levels that adult.names lists, in its order. "?" is unknown, where the census allows it.
_LEVELS: Mapping[str, tuple[str, ...]] = {
    "workclass": (
        *("Private", "Self-emp-not-inc", "Self-emp-inc", "Federal-gov", "Local-gov"),
        *("State-gov", "Without-pay", "Never-worked", "?"),
    ),
    "education": (
        *("Bachelors", "Some-college", "11th", "HS-grad", "Prof-school", "Assoc-acdm"),
        *("Assoc-voc", "9th", "7th-8th", "12th", "Masters", "1st-4th", "10th", "Doctorate"),
        *("5th-6th", "Preschool"),
    ),
    "marital-status": (
        *("Married-civ-spouse", "Divorced", "Never-married", "Separated", "Widowed"),
        *("Married-spouse-absent", "Married-AF-spouse"),
    ),
    "occupation": (
        *("Tech-support", "Craft-repair", "Other-service", "Sales", "Exec-managerial"),
        *("Prof-specialty", "Handlers-cleaners", "Machine-op-inspct", "Adm-clerical"),
        *("Farming-fishing", "Transport-moving", "Priv-house-serv", "Protective-serv"),
        *("Armed-Forces", "?"),
    ),
    "relationship": (
        *("Wife", "Own-child", "Husband", "Not-in-family", "Other-relative", "Unmarried"),
    ),
    "race": ("White", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other", "Black"),
    "sex": ("Female", "Male"),
    "native-country": (
        *("United-States", "Cambodia", "England", "Puerto-Rico", "Canada", "Germany"),
        *("Outlying-US(Guam-USVI-etc)", "India", "Japan", "Greece", "South", "China", "Cuba"),
        *("Iran", "Honduras", "Philippines", "Italy", "Poland", "Jamaica", "Vietnam", "Mexico"),
        *("Portugal", "Ireland", "France", "Dominican-Republic", "Laos", "Ecuador", "Taiwan"),
        *("Haiti", "Columbia", "Hungary", "Guatemala", "Nicaragua", "Scotland", "Thailand"),
        *("Yugoslavia", "El-Salvador", "Trinadad&Tobago", "Peru", "Hong"),
        *("Holand-Netherlands", "?"),
    ),
}

# Numbers are brought to [0, 1] by the bounds of the census questions, not by those of the
# records: age above 16 and top-coded at 90, schooling in 16 steps, dollars in five digits
# (99,999 is the top code; logarithms, as most people have 0), hours in two digits.
_NUMBERS: Mapping[str, Callable[[float], float]] = {
    "age": lambda years: (years - 17) / (90 - 17),
    "education-num": lambda step: (step - 1) / 15,
    "capital-gain": lambda dollars: float(np.log1p(dollars) / np.log1p(99_999)),
    "capital-loss": lambda dollars: float(np.log1p(dollars) / np.log1p(99_999)),
    "hours-per-week": lambda hours: hours / 99,
}


def _dollars(name: str) -> NumberField:
    return NumberField(
        name=name,
        unit="$",
        low=0,
        high=99_999,
        typical=0,
        scale=float(np.log1p(99_999)),
        logarithmic=True,
    )


# The same formulas, for people who fill in a form.
_FORM_NUMBERS = (
    NumberField(name="age", unit="years", low=17, high=90, typical=40, offset=17, scale=90 - 17),
    NumberField(name="education-num", low=1, high=16, typical=10, offset=1, scale=15),
    _dollars("capital-gain"),
    _dollars("capital-loss"),
    NumberField(name="hours-per-week", unit="hours", low=0, high=99, typical=40, scale=99),
)

_FEATURES = len(_NUMBERS) + sum(len(levels) for levels in _LEVELS.values())


class Adult(BinaryTask, PooledTask):
    """32,561 training and 16,281 public test records (Becker & Kohavi 1996, UCI data set 2).

    Inputs are float32, shape (n, 107), in [0, 1]: five numbers and one-hot levels; an unknown
    value is a level of its own. fnlwgt is left out: it says how many people the census lets a
    record stand for, by state and demographic group, and nothing about the person's income.
    The target is 1 above 50,000 dollars. Option ``model``: ``linear`` or ``mlp`` (107-32-1,
    tanh).
    """

    name: ClassVar[str] = "adult"
    nominal_records: ClassVar[int] = 32_561
    class_names: ClassVar[tuple[str, ...]] = ("at most $50,000", "above $50,000")
    data_files: ClassVar[Mapping[str, str]] = {
        "adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        "adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
    }
    data_source: ClassVar[str] = (
        "UCI Machine Learning Repository, data set 2 (https://archive.ics.uci.edu/dataset/2/adult)"
    )
    known_options: ClassVar[Mapping[str, Option]] = {
        **CLIENT_TEST_FRACTION,
        "model": Choice("linear", ("linear", "mlp")),
    }

    def model(self) -> nn.Module:
        """Return the model that the option names."""
        if self.options["model"] == "linear":
            return linear(_FEATURES, 1)
        return tanh_mlp((_FEATURES, 32, 1))

    def model_inputs(self) -> ModelInputs:
        """Return the inputs that the class describes."""
        return ModelInputs((_FEATURES,))

    def form(self) -> FieldsForm:
        """Return the census questions."""
        levels = tuple(ChoiceField(name=name, levels=_LEVELS[name]) for name in _LEVELS)
        return FieldsForm(fields=(*_FORM_NUMBERS, *levels))

    def read_pool(self) -> Pool:
        """Read the published training and test file."""
        x, labels = _parse(self.files.read("adult.data"))
        test_x, test_labels = _parse(self.files.read("adult.test"))
        return Pool(x, labels, test_x, test_labels)

    def inputs(self, x: NDArray[np.generic]) -> Tensor:
        """Return the features as they are."""
        return torch.from_numpy(x)

    def targets(self, labels: NDArray[np.int64]) -> Tensor:
        """Return 1 above 50,000 dollars, else 0."""
        return torch.from_numpy(labels.astype(np.float32))


def _parse(data: bytes) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    # adult.test begins with a comment line, and its labels end in a full stop.
    lines = [line for line in data.decode("ascii").splitlines() if line and line[0] != "|"]
    rows = [dict(zip(_COLUMNS, line.split(", "), strict=True)) for line in lines]
    x = np.array([_features(row) for row in rows], dtype=np.float32)
    labels = np.array([row["income"].rstrip(".") == ">50K" for row in rows], dtype=np.int64)
    return x, labels


def _features(row: Mapping[str, str]) -> list[float]:
    values = [scale(float(row[column])) for column, scale in _NUMBERS.items()]
    for column, levels in _LEVELS.items():
        hot = [0.0] * len(levels)
        hot[levels.index(row[column])] = 1.0
        values += hot
    return values

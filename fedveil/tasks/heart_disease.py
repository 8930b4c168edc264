"""The task `heart-disease`: four real hospitals, preprocessed and split as in FLamby."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import nn

from fedveil.tasks.base import Examples, ModelInputs, TaskError
from fedveil.tasks.forms import ChoiceField, FieldsForm, NumberField
from fedveil.tasks.objectives import BinaryTask
from fedveil.tasks.options import Choice, Option, OptionValue
from fedveil.tasks.partition import PartitionSpec

__all__ = ["HOSPITALS", "HeartDisease"]

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")

# Columns of the files: 0 age, 1 sex, 2 cp, 3 trestbps, 4 chol, 5 fbs, 6 restecg, 7 thalach,
# 8 exang, 9 oldpeak, 10 slope, 11 ca, 12 thal, 13 num.
_PLAIN = (0, 1, 3, 4, 5, 7, 8, 9)
_CP, _RESTECG, _NUM = 2, 6, 13
_KEPT = (*range(10), _NUM)

# Centre and scale of the eight plain features: round clinical figures that anybody can look
# up, none taken from the records. Yes-or-no features stay 0 or 1, as the one-hot ones do.
_CLINICAL = (
    (55.0, 10.0),  # age: years; mid-life, in decades
    (0.0, 1.0),  # sex
    (130.0, 20.0),  # trestbps: mm Hg; hypertension, stage 1 (ACC/AHA 2017) from 130
    (200.0, 100.0),  # chol: mg/dl; desirable below 200 (NCEP ATP III). Wide, as 0 is "missing"
    (0.0, 1.0),  # fbs
    (140.0, 25.0),  # thalach: beats a minute; 85 % of 220 - 55, the usual target of the test
    (0.0, 1.0),  # exang
    (1.0, 1.0),  # oldpeak: mm; 1 mm of ST depression is the usual criterion
)
_PUBLIC_CENTRE, _PUBLIC_SCALE = np.array((*_CLINICAL, *((0.0, 1.0),) * 5)).T


def _number(plain: int, name: str, unit: str, low: float, high: float) -> NumberField:
    centre, scale = _CLINICAL[plain]
    return NumberField(
        name=name, unit=unit, low=low, high=high, typical=centre, offset=centre, scale=scale
    )


def _yes_or_no(name: str, *levels: str) -> ChoiceField:
    return ChoiceField(name=name, levels=levels or ("no", "yes"), without_first=True)


_FORM = FieldsForm(
    fields=(
        _number(0, "age", "years", 20, 100),
        _yes_or_no("sex", "female", "male"),
        _number(2, "resting blood pressure", "mm Hg", 80, 220),
        _number(3, "cholesterol", "mg/dl", 0, 600),
        _yes_or_no("fasting blood sugar above 120 mg/dl"),
        _number(5, "highest heart rate", "beats a minute", 60, 220),
        _yes_or_no("angina on exertion"),
        _number(7, "ST depression", "mm", -3, 7),
        ChoiceField(
            name="chest pain",
            levels=("typical angina", "atypical angina", "other pain", "none"),
            without_first=True,
        ),
        ChoiceField(
            name="resting ECG",
            levels=("normal", "ST-T abnormality", "left ventricular hypertrophy"),
            without_first=True,
        ),
    )
)


@dataclass(frozen=True, eq=False)
class _Split:
    train_x: NDArray[np.float64]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.float64]
    test_y: NDArray[np.int64]


class HeartDisease(BinaryTask):
    """Diagnosis of heart disease at four hospitals (UCI data set 45; Detrano et al. 1989).

    Clients 0 to 3 are Cleveland, Hungarian, Switzerland and VA Long Beach, and each reads its
    own file alone. Preprocessing and split are those of Fed-Heart-Disease (FLamby, Ogier du
    Terrail et al. 2022), and are the same for every seed: slope, ca and thal are dropped, then
    every row with a value missing; cp and restecg are one-hot without their first level, over
    fixed levels; 66 % of a hospital's rows are for training. Inputs are float32, shape (n, 13);
    the target is 1 for disease (num > 0). The model is linear, 13-1.

    Option ``standardise``: ``public`` centres and scales with fixed clinical constants;
    ``local`` is FLamby's way, mean and standard deviation (ddof 1) of the hospital's own
    training rows (a feature that is constant there is only centred), which makes every example
    depend on all records of the hospital: no record-level guarantee holds then. It is the
    default of runs that ask for no privacy.
    """

    name: ClassVar[str] = "heart-disease"
    nominal_records: ClassVar[int] = 486
    class_names: ClassVar[tuple[str, ...]] = ("no disease", "disease")
    data_files: ClassVar[Mapping[str, str]] = {
        "processed.cleveland.data": (
            "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8"
        ),
        "processed.hungarian.data": (
            "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796"
        ),
        "processed.switzerland.data": (
            "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314"
        ),
        "processed.va.data": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
    }
    data_source: ClassVar[str] = (
        "UCI Machine Learning Repository, data set 45"
        " (https://archive.ics.uci.edu/dataset/45/heart+disease)"
    )
    natural_groups: ClassVar[str | None] = "hospital"
    known_options: ClassVar[Mapping[str, Option]] = {
        "standardise": Choice("public", ("public", "local"))
    }
    options_without_privacy: ClassVar[Mapping[str, OptionValue]] = {"standardise": "local"}

    def __init__(
        self,
        *,
        seed: int,
        partition: PartitionSpec,
        data_dir: Path | None = None,
        options: Mapping[str, OptionValue] = MappingProxyType({}),
    ) -> None:
        super().__init__(seed=seed, partition=partition, data_dir=data_dir, options=options)
        if partition.scheme != "natural":
            raise TaskError(
                "the clients of task heart-disease are its hospitals;"
                f" the partition scheme must be natural, not {partition.scheme}"
            )

    def model(self) -> nn.Module:
        """Return a logistic regression."""
        return nn.Linear(13, 1)

    def model_inputs(self) -> ModelInputs:
        """Return the inputs that the class describes."""
        return ModelInputs((13,))

    def form(self) -> FieldsForm | None:
        """Return the features, or None under ``local``: each hospital has its own constants."""
        return _FORM if self.options["standardise"] == "public" else None

    def load(self, partition: int, num_partitions: int) -> tuple[Examples, Examples]:
        """Return the training and test examples of one hospital; see `Task.load`."""
        self._check_client(partition, num_partitions)
        if num_partitions != len(HOSPITALS):
            raise TaskError(
                f"task heart-disease has {len(HOSPITALS)} hospitals, so {len(HOSPITALS)} clients,"
                f" not {num_partitions}"
            )
        if partition not in self._loaded:
            split = self._split(partition)
            centre, scale = self._constants(split.train_x)
            self._loaded[partition] = (
                _examples(split.train_x, split.train_y, centre, scale),
                _examples(split.test_x, split.test_y, centre, scale),
            )
        return self._loaded[partition]

    def public_test(self) -> Examples:
        """Return the test rows of the four hospitals together; needs all four files.

        Under ``local`` they are standardised with the statistics of all training rows together
        (FLamby's "pooled test"). No hospital has made its rows public for this purpose: to call
        them so is a choice of the simulation.
        """
        return self._public_test

    @property
    def record_preprocessing_is_independent(self) -> bool:
        """True under ``public``, False under ``local``."""
        return self.options["standardise"] == "public"

    @cached_property
    def _loaded(self) -> dict[int, tuple[Examples, Examples]]:
        return {}

    @cached_property
    def _public_test(self) -> Examples:
        splits = [self._split(hospital) for hospital in range(len(HOSPITALS))]
        centre, scale = self._constants(np.concatenate([split.train_x for split in splits]))
        x = np.concatenate([split.test_x for split in splits])
        return _examples(x, np.concatenate([split.test_y for split in splits]), centre, scale)

    def _split(self, hospital: int) -> _Split:
        data = self.files.read(f"processed.{HOSPITALS[hospital]}.data")
        return _split(*_parse(data))

    def _constants(
        self, train_x: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.options["standardise"] == "public":
            return _PUBLIC_CENTRE, _PUBLIC_SCALE
        deviation = train_x.std(axis=0, ddof=1)
        return train_x.mean(axis=0), np.where(deviation > 0, deviation, 1.0)


def _parse(data: bytes) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rows = [[row[i] for i in _KEPT] for row in csv.reader(data.decode("ascii").splitlines()) if row]
    values = np.array([row for row in rows if "?" not in row], dtype=np.float64)
    cp = values[:, [_CP]] == (2, 3, 4)
    restecg = values[:, [_RESTECG]] == (1, 2)
    return np.hstack([values[:, _PLAIN], cp, restecg]), (values[:, -1] > 0).astype(np.int64)


def _split(x: NDArray[np.float64], y: NDArray[np.int64]) -> _Split:
    # FLamby's rule: too few rows of a class cannot be divided in proportion.
    stratify = y if np.bincount(y, minlength=2).min() > 2 else None
    train, test = train_test_split(
        np.arange(len(y)), train_size=0.66, test_size=0.34, random_state=43, stratify=stratify
    )
    train, test = np.sort(train), np.sort(test)
    return _Split(x[train], y[train], x[test], y[test])


def _examples(
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    centre: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> Examples:
    inputs = ((x - centre) / scale).astype(np.float32)
    return Examples(torch.from_numpy(inputs), torch.from_numpy(y.astype(np.float32)))

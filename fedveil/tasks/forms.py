"""How people give an input: fields with names and units, a drawing, or a text.

A form says it in plain values, so that a page in a browser and a command line that has no torch
can turn what a person gave into what the model takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedveil.tasks.errors import TaskError

__all__ = [
    "ChoiceField",
    "FieldsForm",
    "Form",
    "ImageForm",
    "NumberField",
    "TextForm",
]

_MOST_SHOWN = 40


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NumberField(_Part):
    """A number with a range; the model takes ``(value - offset) / scale``.

    Parameters
    ----------
    name : str
        What it measures.
    low, high : float
        The range that people usually stay in. Values outside are taken too.
    typical : float
        A value to begin with.
    unit : str
        Of the value; empty where there is none.
    offset, scale : float
        Constants of the formula.
    logarithmic : bool
        Whether ``log(1 + value)`` takes the value's place in it; then values are at least 0.
    """

    kind: Literal["number"] = "number"
    name: str
    low: float
    high: float
    typical: float
    unit: str = ""
    offset: float = 0.0
    scale: float = 1.0
    logarithmic: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low <= self.typical <= self.high or self.scale == 0:
            raise ValueError(
                f"field {self.name}: needs low <= typical <= high, not {self.low:g}, "
                f"{self.typical:g}, {self.high:g}, and a scale that is not 0"
            )
        return self

    @property
    def width(self) -> int:
        """How many of the model's inputs it becomes."""
        return 1

    def encode(self, given: str) -> list[float]:
        """Return the model's input for a number as text.

        Raises
        ------
        TaskError
            If it is no finite number, or below 0 where a logarithm is taken.
        """
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (self.logarithmic and value < 0):
            kind = "number from 0 on" if self.logarithmic else "number"
            raise TaskError(f"{self.name}: {given[:_MOST_SHOWN]!r} is no {kind}")
        plain = math.log1p(value) if self.logarithmic else value
        return [(plain - self.offset) / self.scale]


class ChoiceField(_Part):
    """One level of a few; the model takes a 1 for the level that it is, and 0 for the others.

    Parameters
    ----------
    name : str
        What is chosen.
    levels : tuple of str
        At least two, each once.
    without_first : bool
        Whether the first level has no input of its own: it is zeros alone.
    """

    kind: Literal["choice"] = "choice"
    name: str
    levels: Annotated[tuple[str, ...], Field(min_length=2)]
    without_first: bool = False

    @property
    def width(self) -> int:
        """How many of the model's inputs it becomes."""
        return len(self.levels) - self.without_first

    def encode(self, given: str) -> list[float]:
        """Return the model's inputs for a level.

        Raises
        ------
        TaskError
            If there is no such level.
        """
        if given not in self.levels:
            raise TaskError(
                f"{self.name}: {given[:_MOST_SHOWN]!r} is none of {', '.join(self.levels)}"
            )
        hot = [float(level == given) for level in self.levels]
        return hot[1:] if self.without_first else hot


class FieldsForm(_Part):
    """A table's row: one field after the other.

    Parameters
    ----------
    fields : tuple of NumberField or ChoiceField
        In the order of the model's inputs.
    """

    kind: Literal["fields"] = "fields"
    fields: Annotated[
        tuple[Annotated[NumberField | ChoiceField, Field(discriminator="kind")], ...],
        Field(min_length=1),
    ]

    @property
    def width(self) -> int:
        """How many inputs the model takes for a row."""
        return sum(field.width for field in self.fields)

    def encode(self, row: Mapping[str, str]) -> list[float]:
        """Return the model's inputs for values by field name.

        Raises
        ------
        TaskError
            If a field is missing, is not known, or its value is none of the field's.
        """
        names = [field.name for field in self.fields]
        missing = [name for name in names if name not in row]
        unknown = [name for name in row if name not in names]
        if missing or unknown:
            wrong = f"has no {missing[0]!r}" if missing else f"has {unknown[0][:_MOST_SHOWN]!r}"
            raise TaskError(f"a row {wrong}; the fields are: {', '.join(names)}")
        return [value for field in self.fields for value in field.encode(row[field.name])]


class ImageForm(_Part):
    """A grey image; the model takes its pixels row by row, 0 for paper and 1 for ink.

    Parameters
    ----------
    height, width : int
        Pixels.
    margin : int
        Pixels that stay free around what is drawn, as in the data that the model learned from.
    """

    kind: Literal["image"] = "image"
    height: Annotated[int, Field(ge=1, le=512)]
    width: Annotated[int, Field(ge=1, le=512)]
    margin: Annotated[int, Field(ge=0)] = 0


class TextForm(_Part):
    """A text; the model takes a code for each of its last characters.

    Code 0 is any character that is not in the alphabet. A text that is too short is led by the
    alphabet's first character.

    Parameters
    ----------
    alphabet : str
        Characters; the first has code 1.
    length : int
        How many characters the model takes.
    typical : str
        A text to begin with.
    """

    kind: Literal["text"] = "text"
    alphabet: Annotated[str, Field(min_length=1)]
    length: Annotated[int, Field(ge=1, le=65_536)]
    typical: str = ""

    def encode(self, text: str) -> list[int]:
        """Return the codes of the last `length` characters."""
        codes = [self.alphabet.find(character) + 1 for character in text[-self.length :]]
        return [1] * (self.length - len(codes)) + codes


Form = Annotated[FieldsForm | ImageForm | TextForm, Field(discriminator="kind")]
"""Any of them."""

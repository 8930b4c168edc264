"""The options that a task declares, and the check of what a user gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedveil.tasks.errors import TaskError

__all__ = ["Choice", "Number", "Option", "OptionValue", "resolve_options"]

OptionValue = str | int | float | bool


@dataclass(frozen=True)
class Choice:
    """An option that names one of a few things.

    Parameters
    ----------
    default : str
        Taken when the option is not given; one of `choices`.
    choices : tuple of str
        What may be given.

    Raises
    ------
    TaskError
        If `default` is not among `choices`.
    """

    default: str
    choices: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.default not in self.choices:
            raise TaskError(f"the default {self.default!r} is not one of {self.choices}")

    def describe(self) -> str:
        """Say in a few words what may be given."""
        return f"one of {', '.join(self.choices)}; default {self.default}"

    def accept(self, value: OptionValue) -> str | None:
        """Return the value if it may be given, else None."""
        return value if isinstance(value, str) and value in self.choices else None


@dataclass(frozen=True)
class Number:
    """An option that is a number in a closed interval.

    Parameters
    ----------
    default : float
        Taken when the option is not given.
    low, high : float
        The bounds, both allowed.

    Raises
    ------
    TaskError
        If not low <= default <= high.
    """

    default: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.default <= self.high:
            raise TaskError(f"the default {self.default} is not in [{self.low}, {self.high}]")

    def describe(self) -> str:
        """Say in a few words what may be given."""
        return f"a number in [{self.low:g}, {self.high:g}]; default {self.default:g}"

    def accept(self, value: OptionValue) -> float | None:
        """Return the value as a float if it may be given, else None."""
        if isinstance(value, bool | str) or not math.isfinite(value):
            return None
        return float(value) if self.low <= value <= self.high else None


Option = Choice | Number


def resolve_options(
    task: str, known: Mapping[str, Option], given: Mapping[str, OptionValue]
) -> dict[str, str | float]:
    """Check the options given to a task and fill in the defaults.

    Parameters
    ----------
    task : str
        Name of the task, for the error message.
    known : Mapping[str, Option]
        The options that the task declares.
    given : Mapping[str, str | int | float | bool]
        The options that the user gives.

    Returns
    -------
    dict[str, str | float]
        A value for every declared option.

    Raises
    ------
    TaskError
        If an option is unknown or its value is not allowed; the message lists the known ones.
    """
    listed = "; ".join(f"{name} ({known[name].describe()})" for name in sorted(known)) or "none"
    resolved: dict[str, str | float] = {name: option.default for name, option in known.items()}
    for name, value in given.items():
        if name not in known:
            raise TaskError(f"task {task} has no option {name!r}; known options: {listed}")
        accepted = known[name].accept(value)
        if accepted is None:
            raise TaskError(
                f"option {name} of task {task} cannot be {value!r}; known options: {listed}"
            )
        resolved[name] = accepted
    return resolved

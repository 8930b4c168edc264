from __future__ import annotations

import pytest

from fedveil.tasks.errors import TaskError
from fedveil.tasks.options import Choice, Number, Option, resolve_options

KNOWN: dict[str, Option] = {
    "model": Choice("linear", ("linear", "mlp")),
    "share": Number(0.1, 0.0, 0.9),
}
LISTED = (
    r"known options: model \(one of linear, mlp; default linear\);"
    r" share \(a number in \[0, 0.9\]; default 0.1\)$"
)


def test_defaults_are_filled_in_and_integers_are_numbers() -> None:
    assert resolve_options("t", KNOWN, {}) == {"model": "linear", "share": 0.1}
    resolved = resolve_options("t", KNOWN, {"share": 0, "model": "mlp"})
    assert resolved == {"model": "mlp", "share": 0.0}
    assert isinstance(resolved["share"], float)


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(TaskError, match="task t has no option 'modle'; " + LISTED):
        resolve_options("t", KNOWN, {"modle": "mlp"})
    with pytest.raises(TaskError, match=r"known options: none$"):
        resolve_options("t", {}, {"model": "mlp"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "cnn"),
        ("model", 1),
        ("model", True),
        ("share", "0.1"),
        ("share", False),
        ("share", -0.1),
        ("share", 1),
        ("share", float("nan")),
    ],
)
def test_a_wrong_value_lists_the_known_options(name: str, value: str | float) -> None:
    with pytest.raises(TaskError, match=f"option {name} of task t cannot be .*; " + LISTED):
        resolve_options("t", KNOWN, {name: value})


def test_a_default_must_be_allowed() -> None:
    with pytest.raises(TaskError, match="'cnn' is not one of"):
        Choice("cnn", ("linear",))
    with pytest.raises(TaskError, match=r"2 is not in \[0, 1\]"):
        Number(2, 0, 1)

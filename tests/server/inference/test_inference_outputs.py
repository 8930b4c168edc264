"""Forms of answers: they give away no more than they say, and name the same class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.oip import TensorSpec
from fedveil.server.inference.outputs import FULL, OutputForm, parse_outputs

MANY = TensorSpec("output", "FP32", (10,))
ONE = TensorSpec("output", "FP32", (1,))
BARE = TensorSpec("output", "FP32", ())
TEXTS = TensorSpec("output", "FP32", (7, 80))

FORMS = st.one_of(
    st.just(OutputForm("labels")),
    st.builds(OutputForm, st.just("top"), st.integers(1, 3)),
    st.builds(OutputForm, st.just("round"), st.integers(1, 6)),
)
# Whole numbers give ties; tiny ones are logits that shares cannot tell apart.
VALUES = st.one_of(
    st.integers(-3, 3).map(float),
    st.integers(-9, 9).map(lambda n: n * 1e-30),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.just(-np.inf),
)


def logits(classes: int) -> st.SearchStrategy[np.ndarray]:
    shape = st.tuples(st.integers(1, 4), st.just(classes))
    return hnp.arrays(np.float32, shape, elements=VALUES, fill=st.nothing())


@given(FORMS, st.integers(4, 40).flatmap(logits))
def test_the_class_is_that_of_the_whole_output(form: OutputForm, rows: np.ndarray) -> None:
    if not np.isfinite(rows.max(-1)).all():
        with pytest.raises(ArithmeticError):
            form.apply(rows)
        return
    before = rows.copy()
    found = form.apply(rows)
    labels = found if form.kind == "labels" else found.argmax(-1)
    assert np.array_equal(labels, rows.argmax(-1))
    assert np.array_equal(rows, before)


@given(FORMS.filter(lambda form: form.kind != "top"), logits(1), st.booleans())
def test_one_logit_says_yes_above_0(form: OutputForm, rows: np.ndarray, is_bare: bool) -> None:
    found = form.apply(rows[:, 0] if is_bare else rows)
    is_yes = found == 1 if form.kind == "labels" else found > 0.5
    assert np.array_equal(is_yes.reshape(-1), rows[:, 0] > 0)


@given(st.integers(1, 9), st.integers(10, 12).flatmap(logits))
def test_no_more_than_k_classes_are_told(k: int, rows: np.ndarray) -> None:
    rows[~np.isfinite(rows)] = 0
    found = OutputForm("top", k).apply(rows)
    assert ((found > 0).sum(-1) <= k).all()
    wide = rows.astype(np.float64)
    shares = np.exp(wide - wide.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    told = found > 0
    assert np.allclose(found[told], shares[told], rtol=1e-6)
    for row, sent in zip(rows, found, strict=True):
        assert row[sent > 0].min() >= np.sort(row)[-k]


@given(st.integers(1, 6), st.integers(4, 40).flatmap(logits))
def test_digits_beyond_those_granted_are_not_there(digits: int, rows: np.ndarray) -> None:
    rows[~np.isfinite(rows)] = 0
    found = OutputForm("round", digits).apply(rows)
    steps = found.astype(np.float64) * 10**digits
    # float32 is off by less than this at 6 digits.
    assert np.abs(steps - np.rint(steps)).max() < 0.04
    wide = rows.astype(np.float64)
    shares = np.exp(wide - wide.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.abs(found - shares).max() < 1.51 * 10.0**-digits


def test_ties_are_told_apart_by_one_step() -> None:
    tie = np.array([[0.0, 1e-4, -50.0]], np.float32)
    assert OutputForm("round", 1).apply(tie).tolist() == [[np.float32(0.4), 0.5, 0.0]]
    equal = np.zeros((1, 4), np.float32)
    assert OutputForm("round", 2).apply(equal).tolist() == [[0.25] * 4]
    flat = np.zeros((1, 1000), np.float32)
    flat[0, 7] = 1e-3
    told = OutputForm("round", 2).apply(flat)
    assert told[0, 7] == np.float32(0.01)
    assert np.count_nonzero(told) == 1
    assert OutputForm("top", 2).apply(equal).tolist() == [[0.25, 0.25, 0.0, 0.0]]


def test_what_has_no_class_is_no_answer() -> None:
    for form in (OutputForm("labels"), OutputForm("top", 1), OutputForm("round", 2)):
        for bad in (np.nan, np.inf):
            with pytest.raises(ArithmeticError):
                form.apply(np.array([[0.0, bad, 1.0]], np.float32))
    with pytest.raises(ArithmeticError):
        OutputForm("labels").apply(np.array([[np.nan]], np.float32))


def test_descriptions_are_of_what_is_given() -> None:
    assert FULL.spec(MANY) is MANY
    rows = np.zeros((3, 7, 80), np.float32)
    for text, spec in (("labels", TEXTS), ("top-3", TEXTS), ("round-2", TEXTS)):
        form = parse_outputs(text)
        assert str(form) == text
        told, found = form.spec(spec), form.apply(rows)
        assert (told.numpy, told.row_shape) == (found.dtype, found.shape[1:])
    for spec, values in ((ONE, rows[:, :1, 0]), (BARE, rows[:, 0, 0]), (MANY, rows[:, 0, :10])):
        for text in ("labels", "round-1"):
            told, found = parse_outputs(text).spec(spec), parse_outputs(text).apply(values)
            assert (told.numpy, told.row_shape) == (found.dtype, found.shape[1:])


@pytest.mark.parametrize(
    "text",
    ["", "label", "top", "top-0", "top--1", "round-0", "round-7", "round-1.5", "top-3 ", "a\n"],
)
def test_forms_that_are_not_known_are_told(text: str) -> None:
    with pytest.raises(ServeError, match="is none of full, labels, top-K"):
        parse_outputs(text)


def test_forms_that_a_model_does_not_have_are_told() -> None:
    with pytest.raises(ServeError, match="has 10 classes; take fewer"):
        parse_outputs("top-10").spec(MANY)
    for spec in (ONE, BARE):
        with pytest.raises(ServeError, match="one logit for two classes"):
            parse_outputs("top-1").spec(spec)
    with pytest.raises(ServeError, match="gives INT64, and no logits"):
        parse_outputs("labels").spec(TensorSpec("output", "INT64", (10,)))

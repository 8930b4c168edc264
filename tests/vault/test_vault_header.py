import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.vault.errors import NotACheckpointError
from fedveil.vault.header import Header, MetaValue

FIELDS: dict[str, object] = {
    "version": 1,
    "kind": "model",
    "run": "digits",
    "round": 3,
    "key_id": "0123456789abcdef",
    "created": "2031-05-17T08:00:00Z",
    "plaintext_bytes": 1024,
    "meta": {"loss": 0.5},
}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = text.filter(lambda name: name != "" and name.isprintable())
values = (
    text
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)


def canonical(fields: object) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@given(names, st.integers(0, 999_999), st.dictionaries(names, values, max_size=8))
def test_headers_survive_their_bytes(run: str, round_: int, meta: dict[str, MetaValue]) -> None:
    header = Header(
        version=1,
        kind="strategy-state",
        run=run,
        round=round_,
        key_id="0123456789abcdef",
        created="2031-05-17T08:00:00Z",
        plaintext_bytes=5,
        meta=meta,
    )
    again = Header.from_bytes(header.to_bytes())
    assert again == header
    assert again.to_bytes() == header.to_bytes()
    assert [type(again.meta[name]) for name in meta] == [type(value) for value in meta.values()]


def test_canonical_bytes_are_accepted() -> None:
    assert Header.from_bytes(canonical(FIELDS)).round == 3


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"{}",
        b"null",
        b"\xff",
        b"[" * 60_000,
        b"1" * 5_000,
        canonical(FIELDS) + b" ",
        b" " + canonical(FIELDS),
        canonical(FIELDS).replace(b":", b": "),
        canonical(FIELDS).replace(b'"digits"', b'"\\u0064igits"'),
        canonical(FIELDS).replace(b'"digits"', b'"\\ud800"'),
        canonical(FIELDS).replace(b"0.5", b"0.50"),
        canonical(FIELDS).replace(b"0.5", b"1e999"),
        canonical(FIELDS).replace(b"0.5", b"NaN"),
        canonical(FIELDS).replace(b"0.5", b"Infinity"),
        canonical(FIELDS).replace(b'"round":3', b'"round":3,"round":3'),
        json.dumps(FIELDS, separators=(",", ":")).encode(),
        canonical({**FIELDS, "more": 1}),
        canonical({name: value for name, value in FIELDS.items() if name != "meta"}),
        canonical({**FIELDS, "version": 2}),
        canonical({**FIELDS, "version": True}),
        canonical({**FIELDS, "version": 1.0}),
        canonical({**FIELDS, "kind": ["model"]}),
        canonical({**FIELDS, "round": "3"}),
        canonical({**FIELDS, "key_id": "0123456789ABCDEF"}),
        canonical({**FIELDS, "key_id": "0123456789abcdef\n"}),
        canonical({**FIELDS, "created": "2031-05-17T08:00:00+00:00"}),
        canonical({**FIELDS, "created": "2031-13-17T08:00:00Z"}),
        canonical({**FIELDS, "created": "\uff12\uff1031-05-17T08:00:00Z"}),
        canonical({**FIELDS, "plaintext_bytes": -1}),
        canonical({**FIELDS, "plaintext_bytes": 1 << 70}),
        canonical({**FIELDS, "meta": None}),
        canonical({**FIELDS, "meta": {"a": {"b": 1}}}),
    ],
)
def test_anything_else_is_refused(encoded: bytes) -> None:
    assert encoded != canonical(FIELDS)
    with pytest.raises(NotACheckpointError) as caught:
        Header.from_bytes(encoded)
    assert "\n" not in str(caught.value)


def test_a_header_cannot_be_changed() -> None:
    meta: dict[str, MetaValue] = {"loss": 0.5}
    header = Header.from_bytes(canonical({**FIELDS, "meta": meta}))
    with pytest.raises(FrozenInstanceError):
        header.round = 4  # type: ignore[misc]  # what the test is about
    with pytest.raises(TypeError):
        header.meta["loss"] = 0.0  # type: ignore[index]  # what the test is about

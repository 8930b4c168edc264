import hashlib
import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.vault.errors import HeaderError, NotACheckpointError
from fedveil.vault.header import Address, Header, MetaValue

HASH = "0123456789abcdef" * 4
FIELDS: dict[str, object] = {
    "version": 2,
    "kind": "model",
    "store": "0123456789abcdef",
    "run": "digits",
    "round": 3,
    "created": "2031-05-17T08:00:00Z",
    "plaintext_bytes": 1024,
    "previous": HASH,
    "state": "",
    "commitment": HASH,
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
hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)


def canonical(fields: object) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@given(names, st.integers(0, 999_999), st.dictionaries(names, values, max_size=8), hashes)
def test_headers_survive_their_bytes(
    run: str, round_: int, meta: dict[str, MetaValue], hash_: str
) -> None:
    header = Header(
        version=2,
        kind="strategy-state",
        store="0123456789abcdef",
        run=run,
        round=round_,
        created="2031-05-17T08:00:00Z",
        plaintext_bytes=5,
        previous="",
        state=hash_,
        commitment=hash_,
        meta=meta,
    )
    again = Header.from_bytes(header.to_bytes())
    assert again == header
    assert again.to_bytes() == header.to_bytes()
    assert [type(again.meta[name]) for name in meta] == [type(value) for value in meta.values()]
    assert again.address() == Address("strategy-state", "0123456789abcdef", run, round_)


def test_canonical_bytes_are_accepted() -> None:
    assert Header.from_bytes(canonical(FIELDS)).round == 3


def test_the_fingerprint_is_that_of_the_start_of_the_file() -> None:
    encoded = canonical(FIELDS)
    start = b"FVLT2\n" + len(encoded).to_bytes(4, "big") + encoded
    header = Header.from_bytes(encoded)
    assert header.bound() == start
    assert header.fingerprint() == hashlib.sha256(start).hexdigest()


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
        canonical({**FIELDS, "version": 1}),
        canonical({**FIELDS, "version": True}),
        canonical({**FIELDS, "version": 2.0}),
        canonical({**FIELDS, "kind": ["model"]}),
        canonical({**FIELDS, "round": "3"}),
        canonical({**FIELDS, "store": "0123456789ABCDEF"}),
        canonical({**FIELDS, "store": "0123456789abcdef\n"}),
        canonical({**FIELDS, "created": "2031-05-17T08:00:00+00:00"}),
        canonical({**FIELDS, "created": "2031-13-17T08:00:00Z"}),
        canonical({**FIELDS, "created": "\uff12\uff1031-05-17T08:00:00Z"}),
        canonical({**FIELDS, "plaintext_bytes": -1}),
        canonical({**FIELDS, "plaintext_bytes": (1 << 51) + 1}),
        canonical({**FIELDS, "previous": HASH[:-1]}),
        canonical({**FIELDS, "previous": None}),
        canonical({**FIELDS, "state": HASH.upper()}),
        canonical({**FIELDS, "commitment": ""}),
        canonical({**FIELDS, "commitment": 5}),
        canonical({**FIELDS, "meta": None}),
        canonical({**FIELDS, "meta": {"a": {"b": 1}}}),
    ],
)
def test_anything_else_is_refused(encoded: bytes) -> None:
    assert encoded != canonical(FIELDS)
    with pytest.raises(NotACheckpointError) as caught:
        Header.from_bytes(encoded)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        ("other", "0123456789abcdef", "run", 1),
        ("model", "0123", "run", 1),
        ("model", "0123456789abcdef", "", 1),
        ("model", "0123456789abcdef", "two\nlines", 1),
        ("model", "0123456789abcdef", "run", -1),
        ("model", "0123456789abcdef", "run", 1_000_000),
        ("model", "0123456789abcdef", "run", True),
    ],
)
def test_addresses_that_cannot_be_are_refused(values: tuple[object, ...]) -> None:
    with pytest.raises(HeaderError) as caught:
        Address(*values)  # type: ignore[arg-type]  # wrong types are what it is about
    assert "\n" not in str(caught.value)


def test_a_header_cannot_be_changed() -> None:
    meta: dict[str, MetaValue] = {"loss": 0.5}
    header = Header.from_bytes(canonical({**FIELDS, "meta": meta}))
    with pytest.raises(FrozenInstanceError):
        header.round = 4  # type: ignore[misc]  # what the test is about
    with pytest.raises(TypeError):
        header.meta["loss"] = 0.0  # type: ignore[index]  # what the test is about

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.vault import stream
from fedveil.vault.checkpoint import MAGIC, open_sealed, read_header, seal, seal_to
from fedveil.vault.errors import (
    ExtendedError,
    HeaderError,
    NotACheckpointError,
    TamperedError,
    TensorError,
    TruncatedError,
    VaultError,
    WrongKeyError,
)
from fedveil.vault.header import MetaValue
from fedveil.vault.keyfile import Key
from fedveil.vault.tensors import Array

KEY = Key(bytes(range(32)))
TENSORS: dict[str, Array] = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.array(7, dtype=np.int64),
    "none": np.empty((0, 4), dtype=np.float16),
}
META: dict[str, MetaValue] = {"loss": 0.25, "rounds": 7, "note": "é\n", "done": False}


GOOD = {
    "key": KEY,
    "kind": "model",
    "run": "digits",
    "round_": 7,
    "tensors": TENSORS,
    "meta": META,
}


def sealed(tensors: Mapping[str, Array] = TENSORS, round_: int = 7) -> bytes:
    return seal(KEY, "model", "digits", round_, tensors, META)


def parts(data: bytes) -> tuple[bytes, bytes]:
    """Return the header's JSON and the stream, by the format's description alone."""
    assert data[:6] == b"FVLT1\n"
    length = int.from_bytes(data[6:10], "big")
    return data[10 : 10 + length], data[10 + length :]


def with_header(data: bytes, header: bytes) -> bytes:
    return MAGIC + len(header).to_bytes(4, "big") + header + parts(data)[1]


def test_what_is_sealed_is_opened() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    header, tensors = open_sealed(KEY, sealed())
    assert (header.version, header.kind, header.run, header.round) == (1, "model", "digits", 7)
    assert header.key_id == KEY.key_id
    assert before <= datetime.fromisoformat(header.created) <= datetime.now(UTC)
    assert dict(header.meta) == META
    assert [type(header.meta[name]) for name in META] == [type(value) for value in META.values()]
    assert set(tensors) == set(TENSORS)
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype
        assert tensors[name].shape == array.shape
        np.testing.assert_array_equal(tensors[name], array)


def test_no_tensors_at_all_are_sealed_and_opened() -> None:
    assert open_sealed(KEY, sealed({}))[1] == {}


def test_the_file_is_what_the_description_says() -> None:
    data = sealed()
    header, body = parts(data)
    fields = json.loads(header)
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical.encode() == header
    assert set(fields) == {
        *("version", "kind", "run", "round", "key_id", "created", "plaintext_bytes", "meta")
    }
    plaintext = stream.decrypt(KEY.secret, body, data[: 10 + len(header)])
    assert len(plaintext) == fields["plaintext_bytes"]
    loaded = safetensors.numpy.load(bytes(plaintext))
    np.testing.assert_array_equal(loaded["weight"], TENSORS["weight"])


def test_sealing_into_a_sink_is_the_same_format() -> None:
    sink = io.BytesIO()
    header = seal_to(sink, KEY, "strategy-state", "run", 0, TENSORS, {})
    assert open_sealed(KEY, sink.getvalue())[0] == header


def test_a_checkpoint_of_many_segments_is_opened() -> None:
    big: dict[str, Array] = {
        "a": np.random.default_rng(1).standard_normal(300_000),
        "b": np.random.default_rng(2).standard_normal(200_001).astype(np.float32),
    }
    _, tensors = open_sealed(KEY, sealed(big))
    for name, array in big.items():
        np.testing.assert_array_equal(tensors[name], array)


def test_tensors_and_their_names_are_not_in_clear() -> None:
    data = sealed({"a-telling-name": np.frombuffer(b"known weights!!!" * 4, dtype=np.uint8)})
    assert b"a-telling-name" not in data
    assert b"known weights!!!" not in data


def test_the_header_is_read_without_a_key() -> None:
    data = sealed()
    body = parts(data)[1]
    assert read_header(data).run == "digits"
    assert read_header(data[: -len(body)]) == read_header(data)


def test_another_key_is_named() -> None:
    other = Key.generate()
    with pytest.raises(WrongKeyError) as caught:
        open_sealed(other, sealed())
    assert KEY.key_id in str(caught.value)
    assert other.key_id in str(caught.value)


def test_another_key_under_the_same_name_is_refused() -> None:
    other = Key.generate()
    data = sealed().replace(KEY.key_id.encode(), other.key_id.encode())
    with pytest.raises(TamperedError):
        open_sealed(other, data)


@pytest.mark.parametrize("data", [b"", b"\x80PK", b"FVLT2\n", b"FVLT1\r", b"x" * 1000])
def test_what_is_no_checkpoint_is_named(data: bytes) -> None:
    with pytest.raises(NotACheckpointError, match="not an encrypted checkpoint"):
        open_sealed(KEY, data)


def test_every_truncation_is_refused() -> None:
    data = sealed()
    for length in range(1, len(data)):
        with pytest.raises(TruncatedError):
            open_sealed(KEY, data[:length])


@given(st.binary(min_size=1, max_size=100))
def test_every_extension_is_refused(tail: bytes) -> None:
    with pytest.raises(ExtendedError, match=f"{len(tail)} bytes follow"):
        open_sealed(KEY, sealed() + tail)


def test_every_flipped_bit_is_refused() -> None:
    data = sealed()
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VaultError):
            open_sealed(KEY, changed)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_header_gives_one_line_at_worst(header: bytes) -> None:
    with pytest.raises(VaultError) as caught:
        open_sealed(KEY, with_header(sealed(), header))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "strategy-state"),
        ("run", "digitz"),
        ("round", 8),
        ("created", "2031-05-17T08:00:00Z"),
        ("meta", {}),
        ("meta", {**META, "loss": 0.125}),
    ],
)
def test_a_changed_field_is_tampering(name: str, value: object) -> None:
    data = sealed()
    fields = {**json.loads(parts(data)[0]), name: value}
    header = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    with pytest.raises(TamperedError):
        open_sealed(KEY, with_header(data, header.encode()))


def test_a_header_of_another_checkpoint_is_tampering() -> None:
    one, other = sealed(), sealed(round_=6)
    with pytest.raises(TamperedError):
        open_sealed(KEY, with_header(one, parts(other)[0]))


def test_a_length_that_is_lied_about_is_refused_before_memory_is_taken() -> None:
    data = sealed()
    fields = {**json.loads(parts(data)[0]), "plaintext_bytes": 1 << 50}
    header = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    with pytest.raises(TruncatedError, match="missing"):
        open_sealed(KEY, with_header(data, header.encode()))


def test_a_header_that_claims_too_much_is_refused() -> None:
    with pytest.raises(NotACheckpointError, match="claims 65537 bytes"):
        open_sealed(KEY, MAGIC + (65537).to_bytes(4, "big") + bytes(70_000))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"kind": None},
        {"run": ""},
        {"run": "two\nlines"},
        {"run": "x" * 129},
        {"run": 5},
        {"round_": -1},
        {"round_": 1_000_000},
        {"round_": True},
        {"round_": 1.0},
        {"meta": [("a", 1)]},
        {"meta": {"": 1}},
        {"meta": {5: 1}},
        {"meta": {"a": None}},
        {"meta": {"a": [1]}},
        {"meta": {"a": np.float32(1)}},
        {"meta": {"a": float("nan")}},
        {"meta": {"a": float("inf")}},
        {"meta": {"a": 1 << 63}},
        {"meta": {"a": "\ud800"}},
        {"meta": {"a": "x" * 65_536}},
    ],
)
def test_values_that_a_header_cannot_hold_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(HeaderError) as caught:
        seal(**{**GOOD, **change})  # type: ignore[arg-type]  # wrong types are what it is about
    assert "\n" not in str(caught.value)


def test_nothing_is_written_when_a_value_is_refused() -> None:
    sink = io.BytesIO()
    with pytest.raises(HeaderError):
        seal_to(sink, KEY, "model", "run", -1, TENSORS, {})
    with pytest.raises(TensorError):
        seal_to(sink, KEY, "model", "run", 1, {"x": np.array("text")}, {})
    assert sink.getvalue() == b""


def test_a_sealed_stream_that_holds_no_tensors_is_refused() -> None:
    header = parts(sealed({}))[0].replace(b'"plaintext_bytes":16', b'"plaintext_bytes":4')
    assert b'"plaintext_bytes":4' in header
    bound = MAGIC + len(header).to_bytes(4, "big") + header
    with pytest.raises(TensorError):
        open_sealed(KEY, bound + bytes(stream.encrypt(KEY.secret, b"junk", bound)))

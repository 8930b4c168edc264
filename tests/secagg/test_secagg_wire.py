from __future__ import annotations

import dataclasses
import struct
import tracemalloc
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedveil.secagg import client_memory, messages
from fedveil.secagg.errors import SecAggError, WireError
from fedveil.secagg.messages import (
    Advertisement,
    Confirmation,
    ConfirmRequest,
    InputReply,
    InputRequest,
    KeysRequest,
    Member,
    Packet,
    Parcel,
    Refusal,
    RoundHeader,
    Settings,
    SetupRequest,
    Share,
    SharesReply,
    Signed,
    UnmaskReply,
    UnmaskRequest,
    survivors_digest,
)
from fedveil.secagg.wire import (
    F64,
    U32,
    U64,
    Blob,
    Fixed,
    Nested,
    Record,
    Seq,
    Text,
    U32s,
    kind_of,
)


def records_of(*modules: object) -> list[type[Record]]:
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Record) and value is not Record
    }
    return sorted(found, key=lambda record: record.KIND)


RECORDS = records_of(messages, client_memory)


def values_of(field: object) -> st.SearchStrategy[object]:
    """Return what a field of the wire can hold, read off its own limits."""
    match field:
        case U32():
            return st.integers(0, 2**32 - 1)
        case U64():
            return st.integers(0, 2**64 - 1)
        case F64():
            return st.floats(allow_nan=False)
        case Fixed(_size=size):
            return st.binary(min_size=size, max_size=size)
        case Blob(_most=most):
            return st.binary(max_size=min(most, 40))
        case Text(_blob=Blob(_most=most)):
            return st.text(max_size=min(most // 4, 20)).filter(str.isprintable)
        case Seq(_item=item, _most=most):
            return st.lists(values_of(item), max_size=min(most, 3)).map(tuple)
        case Nested(_record=record):
            return records(record)
    raise AssertionError(field)


def records(record: type[Record]) -> st.SearchStrategy[Record]:
    return st.builds(record, *(values_of(field) for field in record.LAYOUT))


FILTERED = [HealthCheck.filter_too_much, HealthCheck.too_slow]
FEW = settings(max_examples=10, suppress_health_check=FILTERED)
SOME = settings(max_examples=20, suppress_health_check=FILTERED)
EVERY = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
ANY_RECORD = st.sampled_from(RECORDS).flatmap(records)

KEY = bytes(range(32))
SETTINGS = Settings("run", 10, 1.5, 2.0, 7, 32, 3)
ADVERTISEMENT = Advertisement(KEY, "alice", KEY, KEY, KEY, KEY, (KEY, KEY), KEY * 2)
HEADER = RoundHeader(KEY, 1, 2, 3, "update", "", KEY, (0, 1, 2))
EXAMPLES: list[Record] = [
    SETTINGS,
    SetupRequest(SETTINGS, KEY),
    ADVERTISEMENT,
    Member("bob", KEY),
    KeysRequest(KEY, 2, 2, 3, (Member("a", KEY), Member("b", KEY)), (ADVERTISEMENT,)),
    Packet(1, b"sealed", b"commitments"),
    SharesReply(KEY, (KEY,), (Packet(1, b"s", b"c"),)),
    HEADER,
    Parcel(1, b"sealed", b"commitments"),
    InputRequest(HEADER, (Parcel(0, b"s", b"c"),)),
    InputReply(KEY, ("loss", "änderung"), (3,)),
    ConfirmRequest(KEY, (0, 5)),
    Confirmation(KEY, KEY * 2),
    Signed(3, KEY * 2),
    UnmaskRequest(KEY, (Signed(3, KEY * 2),)),
    Share(3, bytes(33)),
    UnmaskReply(KEY, KEY, (Share(1, bytes(33)),), (Share(2, bytes(33)),)),
    Refusal("floor", "too few", "alice"),
]


def test_there_is_an_example_of_every_message() -> None:
    assert {type(example) for example in EXAMPLES} == set(records_of(messages))


def test_no_two_records_have_one_kind() -> None:
    kinds = [record.KIND for record in RECORDS]
    assert len(kinds) == len(set(kinds)) == 26
    assert all(0 <= kind < 256 for kind in kinds)


@EVERY
@SOME
@given(data=st.data())
def test_a_record_comes_back_as_it_was(record: type[Record], data: st.DataObject) -> None:
    value = data.draw(records(record))
    raw = value.encode()
    assert raw[:2] == bytes((1, record.KIND))
    assert record.decode(raw) == value
    assert record.decode(raw).encode() == raw


@EVERY
@FEW
@given(data=st.data())
def test_the_parts_of_a_record_are_all_in_its_bytes(
    record: type[Record], data: st.DataObject
) -> None:
    one, other = data.draw(records(record)), data.draw(records(record))
    assert (one == other) == (one.encode() == other.encode()) or _has_signed_zeros(one, other)


def _has_signed_zeros(one: Record, other: Record) -> bool:
    return one == other and "-0.0" in repr(one) + repr(other)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_every_truncation_is_refused(example: Record) -> None:
    raw = example.encode()
    for length in range(len(raw)):
        with pytest.raises(WireError):
            type(example).decode(raw[:length])


@EVERY
@FEW
@given(data=st.data(), more=st.binary(min_size=1, max_size=3))
def test_bytes_behind_the_end_are_refused(
    record: type[Record], data: st.DataObject, more: bytes
) -> None:
    raw = data.draw(records(record)).encode()
    with pytest.raises(WireError, match=f"{len(more)} bytes too many behind {record.__name__}"):
        record.decode(raw + more)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_another_kind_or_version_is_refused(example: Record) -> None:
    raw = example.encode()
    for other in range(256):
        if other != raw[1]:
            with pytest.raises(WireError, match=f"kind {other} where"):
                type(example).decode(bytes((1, other)) + raw[2:])
        if other != 1:
            with pytest.raises(WireError, match="version 1"):
                type(example).decode(bytes((other, raw[1])) + raw[2:])


def test_the_kind_of_a_message_is_told_without_reading_it() -> None:
    for example in EXAMPLES:
        assert kind_of(example.encode()) == example.KIND
    for short in (b"", b"\1"):
        with pytest.raises(WireError, match="empty"):
            kind_of(short)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=9))
def test_many_integers_at_once_are_written_like_one_by_one(numbers: list[int]) -> None:
    at_once, one_by_one = bytearray(), bytearray()
    U32s(9).write(at_once, numbers)
    Seq(U32(), 9).write(one_by_one, numbers)
    assert at_once == one_by_one
    assert U32s(9).read(bytes(at_once), 0) == (tuple(numbers), len(at_once))


def test_a_record_is_not_read_as_one_of_the_same_layout() -> None:
    with pytest.raises(WireError, match="kind 6 where Parcel was expected"):
        Parcel.decode(Packet(1, b"sealed", b"commitments").encode())


@given(ANY_RECORD, st.data())
@settings(max_examples=400)
def test_what_decodes_after_a_mutation_is_canonical(value: Record, data: st.DataObject) -> None:
    raw = bytearray(value.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["set", "insert", "delete"])):
            case "set":
                raw[at] = data.draw(st.integers(0, 255))
            case "insert":
                raw.insert(at, data.draw(st.sampled_from([0, 1, 255])))
            case "delete" if len(raw) > 1:
                del raw[at]
    _decodes_canonically(type(value), bytes(raw))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_every_flipped_bit_is_refused_or_another_canonical_message(example: Record) -> None:
    raw = example.encode()
    changed = 0
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        changed += _decodes_canonically(type(example), bytes(flipped))
    assert changed, "no flipped bit was decoded, so nothing was tried"


@given(st.sampled_from(RECORDS), st.binary(max_size=200))
@settings(max_examples=300)
def test_arbitrary_bytes_are_refused_or_canonical(record: type[Record], tail: bytes) -> None:
    _decodes_canonically(record, bytes((1, record.KIND)) + tail)


def _decodes_canonically(record: type[Record], raw: bytes) -> bool:
    try:
        value = record.decode(raw)
    except WireError:
        return False
    assert value.encode() == raw
    return True


@dataclass(frozen=True)
class Everything(Record):
    KIND: ClassVar[int] = 200
    LAYOUT: ClassVar = (U32(), F64(), Blob(3), Text(4), U32s(2), Seq(Blob(2**20), 2**20))

    number: int = 0
    real: float = 0.0
    blob: bytes = b""
    text: str = ""
    numbers: tuple[int, ...] = ()
    blobs: tuple[bytes, ...] = ()


HEAD = bytes((1, 200))
EMPTY = bytes(4 + 8 + 4 + 4 + 4 + 4)
BLOB, TEXT, NUMBERS, BLOBS = 12, 16, 20, 24


def with_at(at: int, piece: bytes, cut: int | None = None) -> bytes:
    """Return the empty record with a piece in the place of a field's 4 bytes of length."""
    return HEAD + EMPTY[:at] + piece + EMPTY[at + 4 : cut]


def length(count: int) -> bytes:
    return struct.pack(">I", count)


def test_bytes_of_a_record_written_out_by_hand() -> None:
    value = Everything(7, 1.0, b"abc", "é", (1, 2), (b"",))
    assert value.encode() == bytes.fromhex(
        "01c8 00000007 3ff0000000000000 00000003 616263 00000002 c3a9"
        " 00000002 00000001 00000002 00000001 00000000"
    )
    assert Everything().encode() == HEAD + EMPTY


def test_lengths_up_to_the_limit_pass_and_above_are_refused() -> None:
    for at, within, above in (
        (BLOB, length(3) + b"abc", length(4) + b"abcd"),
        (TEXT, length(4) + b"abcd", length(5) + b"abcde"),
        (NUMBERS, length(2) + bytes(8), length(3) + bytes(12)),
    ):
        assert Everything.decode(with_at(at, within)).encode() == with_at(at, within)
        with pytest.raises(WireError, match="is more than the"):
            Everything.decode(with_at(at, above))
        with pytest.raises(WireError, match="is more than the"):
            Everything.decode(with_at(at, length(2**32 - 1)))


@pytest.mark.parametrize(
    "change",
    [
        {"blob": b"1234"},
        {"text": "12345"},
        {"text": "ééé"},
        {"numbers": (1, 2, 3)},
        {"number": -1},
        {"number": 2**32},
        {"number": 0.5},
        {"numbers": (2**32,)},
        {"text": "a\n"},
        {"text": "\ud800"},
        {"real": "one"},
    ],
)
def test_values_that_do_not_fit_are_not_written(change: dict[str, object]) -> None:
    with pytest.raises(WireError):
        dataclasses.replace(Everything(), **change).encode()  # type: ignore[arg-type]  # on purpose


def test_fixed_bytes_of_another_length_are_not_written() -> None:
    with pytest.raises(WireError, match="31 bytes where 32 belong"):
        Member("a", bytes(31)).encode()


@pytest.mark.parametrize(
    "bits", ["7ff8000000000000", "7ff0000000000001", "fff8000000000000", "7fffffffffffffff"]
)
def test_nan_is_refused_whatever_its_bits(bits: str) -> None:
    raw = bytearray(HEAD + EMPTY)
    raw[6:14] = bytes.fromhex(bits)
    with pytest.raises(WireError, match="NaN"):
        Everything.decode(bytes(raw))


@pytest.mark.parametrize("bits", ["7ff0000000000000", "8000000000000000", "0000000000000001"])
def test_other_doubles_keep_their_bits(bits: str) -> None:
    raw = bytearray(HEAD + EMPTY)
    raw[6:14] = bytes.fromhex(bits)
    assert Everything.decode(bytes(raw)).encode() == bytes(raw)


@pytest.mark.parametrize("text", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xc3", b"\xf5\x80\x80"])
def test_text_that_is_not_utf8_is_refused(text: bytes) -> None:
    with pytest.raises(WireError, match="not UTF-8"):
        Everything.decode(with_at(TEXT, length(len(text)) + text))


@pytest.mark.parametrize("text", ["\n", "\0", "a\x1b", "\u200b", "\u202e", "\u2028", "\u00a0"])
def test_text_that_does_not_print_is_refused(text: str) -> None:
    raw = text.encode()
    with pytest.raises(WireError, match="not printable"):
        Everything.decode(with_at(TEXT, length(len(raw)) + raw))


@pytest.mark.parametrize("count", [1, 2**10, 2**20])
def test_a_promise_of_many_items_in_a_short_message_is_refused(count: int) -> None:
    with pytest.raises(WireError, match=f"promises {count} items"):
        Everything.decode(with_at(BLOBS, length(count)))


def test_a_promise_of_much_allocates_nothing_big() -> None:
    hostile = [
        (Everything, with_at(BLOBS, length(2**20))),
        (Everything, with_at(BLOBS, length(1) + length(2**20))),
        (ConfirmRequest, bytes((1, 12)) + bytes(32) + length(2**20)),
        (UnmaskRequest, bytes((1, 15)) + bytes(32) + length(2**20) + bytes(4)),
        (KeysRequest, bytes((1, 5)) + bytes(44) + length(2**20) + bytes(60)),
        (SharesReply, bytes((1, 7)) + bytes(32) + length(1000) + bytes(31)),
    ]
    tracemalloc.start()
    try:
        for record, raw in hostile:
            with pytest.raises(WireError):
                record.decode(raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_a_wire_error_is_an_error_of_the_protocol_in_one_line() -> None:
    with pytest.raises(SecAggError) as caught:
        Confirmation.decode(b"")
    assert "\n" not in str(caught.value)


def test_digests_of_messages_hang_on_every_field() -> None:
    request = SetupRequest(SETTINGS, KEY)
    for change in ({"slots": 4}, {"run": "other"}, {"clip_norm": 1.25}, {"ring_bits": 16}):
        other = SetupRequest(dataclasses.replace(SETTINGS, **change), KEY)  # type: ignore[arg-type]
        assert other.setup_id != request.setup_id
    assert SetupRequest(SETTINGS, bytes(32)).setup_id != request.setup_id
    for field, change in (
        ("transcript", bytes(32)),
        ("slot", 2),
        ("round", 3),
        ("attempt", 4),
        ("purpose", "figures"),
        ("weight_key", "examples"),
        ("content", bytes(32)),
        ("participants", (0, 1)),
    ):
        assert dataclasses.replace(HEADER, **{field: change}).sid != HEADER.sid


def test_a_signature_covers_every_field_of_an_advertisement_but_itself() -> None:
    for field, change in (
        ("setup_id", bytes(32)),
        ("name", "bob"),
        ("identity_key", bytes(32)),
        ("nonce", bytes(32)),
        ("channel_key", bytes(32)),
        ("mask_keys", (KEY,)),
    ):
        other = dataclasses.replace(ADVERTISEMENT, **{field: change})
        assert other.signed_bytes != ADVERTISEMENT.signed_bytes
        assert other.digest != ADVERTISEMENT.digest
    unsigned = dataclasses.replace(ADVERTISEMENT, signature=bytes(64))
    assert unsigned.signed_bytes == ADVERTISEMENT.signed_bytes
    assert unsigned.digest != ADVERTISEMENT.digest


def test_the_transcript_hangs_on_the_numbers_and_all_members() -> None:
    request = KeysRequest(KEY, 2, 2, 3, (Member("a", KEY), Member("b", KEY)), (ADVERTISEMENT,))
    for field, change in (
        ("setup_id", bytes(32)),
        ("neighbours", 1),
        ("threshold", 1),
        ("quorum", 2),
        ("members", (Member("a", KEY), Member("c", KEY))),
        ("members", (Member("a", KEY), Member("b", bytes(32)))),
        ("members", (Member("a", KEY),)),
    ):
        assert dataclasses.replace(request, **{field: change}).transcript != request.transcript
    # Each client is sent other neighbours, and all compute one transcript.
    assert dataclasses.replace(request, advertisements=()).transcript == request.transcript


def test_survivors_are_signed_with_their_round() -> None:
    signed = survivors_digest(KEY, (1, 2, 3))
    assert signed == survivors_digest(KEY, [1, 2, 3])
    assert signed != survivors_digest(KEY, (1, 2))
    assert signed != survivors_digest(bytes(32), (1, 2, 3))

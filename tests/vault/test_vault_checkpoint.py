import json
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from vault_files import (
    ADDRESS,
    MODEL_KEY,
    SIGNING_KEY,
    VERIFY_KEY,
    MemorySink,
    header_end,
    join,
    open_sealed,
    parts,
    seal,
)

from fedveil.vault import checkpoint
from fedveil.vault.buffers import Shadow, buffer_reader
from fedveil.vault.checkpoint import (
    Access,
    authenticate,
    open_into,
    open_some,
    verify_signature_from,
)
from fedveil.vault.errors import (
    ExtendedError,
    HeaderError,
    NotACheckpointError,
    SignatureError,
    StoreError,
    TamperedError,
    TensorError,
    TruncatedError,
    VaultError,
    WrongKeyError,
)
from fedveil.vault.hashlist import HashList
from fedveil.vault.head import Seal, read_head
from fedveil.vault.header import Address, Header, MetaValue
from fedveil.vault.keyfile import Key
from fedveil.vault.sealing import seal_to
from fedveil.vault.signing import SigningKey
from fedveil.vault.slots import commitment, unwrap_data_key, wrap_data_key
from fedveil.vault.stream import decrypt_into, encrypt_to
from fedveil.vault.tensors import Array, TensorFile

TENSORS: dict[str, Array] = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.array(7, dtype=np.int64),
    "none": np.empty((0, 4), dtype=np.float16),
}
META: dict[str, MetaValue] = {"loss": 0.25, "rounds": 7, "note": "é\n", "done": False}
ACCESS = Access(ADDRESS, MODEL_KEY, VERIFY_KEY)
# Three segments, so that there is one in the middle.
BIG: dict[str, Array] = {
    "a": np.random.default_rng(1).standard_normal(200_000),
    "b": np.random.default_rng(2).standard_normal(200_001).astype(np.float32),
}
MIB = 1 << 20


def sealed(tensors: Mapping[str, Array] = TENSORS, address: Address = ADDRESS) -> bytes:
    return seal(tensors, META, address=address)


def canonical(fields: object) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def with_header(data: bytes, header: bytes) -> bytes:
    return join(header, *parts(data)[1:])


def verify_signature(data: bytes) -> Header:
    return verify_signature_from(buffer_reader(data), len(data), ADDRESS, VERIFY_KEY)


def test_what_is_sealed_is_opened() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    header, tensors = open_sealed(sealed())
    assert (header.version, header.address()) == (2, ADDRESS)
    assert (header.previous, header.state) == ("", "")
    assert before <= datetime.fromisoformat(header.created) <= datetime.now(UTC)
    assert dict(header.meta) == META
    assert [type(header.meta[name]) for name in META] == [type(value) for value in META.values()]
    assert set(tensors) == set(TENSORS)
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype
        assert tensors[name].shape == array.shape
        np.testing.assert_array_equal(tensors[name], array)


def test_no_tensors_at_all_are_sealed_and_opened() -> None:
    assert open_sealed(sealed({}))[1] == {}


@pytest.mark.parametrize("threads", [1, 3])
def test_a_checkpoint_of_many_segments_is_opened(threads: int) -> None:
    sink = MemorySink()
    seal_to(sink, ADDRESS, BIG, {}, model_key=MODEL_KEY, signing_key=SIGNING_KEY, threads=threads)
    _, tensors = open_sealed(sink.content, threads=threads)
    for name, array in BIG.items():
        np.testing.assert_array_equal(tensors[name], array)


def test_tensors_and_their_names_are_not_in_clear() -> None:
    data = sealed({"a-telling-name": np.frombuffer(b"known weights!!!" * 4, dtype=np.uint8)})
    assert b"a-telling-name" not in data
    assert b"known weights!!!" not in data
    assert MODEL_KEY.secret not in data
    assert SIGNING_KEY.secret not in data


def test_every_file_has_a_data_key_of_its_own() -> None:
    commitments = {
        read_head(buffer_reader(data), len(data)).header.commitment
        for data in (sealed(), sealed(), sealed())
    }
    assert len(commitments) == 3


def test_the_head_is_read_without_a_key() -> None:
    data = sealed()
    head = data[: header_end(data) + 288]
    assert read_head(buffer_reader(head), len(head)).header.run == "digits"
    assert read_head(buffer_reader(head), len(head)).to_bytes() == head


def test_an_unsigned_file_has_no_seal_and_opens_only_where_none_is_demanded() -> None:
    data = seal(TENSORS, signing_key=None)
    assert parts(data)[2] == bytes(96)
    assert set(open_sealed(data, verify_key=None)[1]) == set(TENSORS)
    with pytest.raises(SignatureError, match="not signed, where the coordinator's key"):
        open_sealed(data)


def test_a_signed_file_opens_where_no_signature_is_demanded() -> None:
    assert set(open_sealed(sealed(), verify_key=None)[1]) == set(TENSORS)


def test_another_key_is_named() -> None:
    other = Key.generate()
    with pytest.raises(WrongKeyError) as caught:
        open_sealed(sealed(), model_key=other)
    assert MODEL_KEY.key_id in str(caught.value)
    assert other.key_id in str(caught.value)


def test_another_key_under_the_same_name_is_refused() -> None:
    other = Key.generate()
    data = sealed().replace(MODEL_KEY.key_id.encode(), other.key_id.encode())
    with pytest.raises(TamperedError, match="wrap list is swapped"):
        open_sealed(data, model_key=other)


@pytest.mark.parametrize("data", [b"", b"\x80PK", b"FVLT3\n", b"FVLT2\r", b"x" * 1000])
def test_what_is_no_checkpoint_is_named(data: bytes) -> None:
    with pytest.raises(NotACheckpointError, match="not an encrypted checkpoint"):
        open_sealed(data)


def test_version_one_is_refused_by_name() -> None:
    with pytest.raises(NotACheckpointError, match=r"version 1 \(FVLT1\).*no longer reads"):
        open_sealed(b"FVLT1\n" + bytes(1000))


def test_every_truncation_is_refused() -> None:
    data = sealed()
    for length in range(1, len(data)):
        with pytest.raises(TruncatedError):
            open_sealed(data[:length])


@given(st.binary(min_size=1, max_size=100))
def test_every_extension_is_refused(tail: bytes) -> None:
    data = sealed()
    with pytest.raises(ExtendedError, match=f"{len(tail)} bytes follow"):
        open_sealed(data + tail)
    with pytest.raises(ExtendedError):
        verify_signature(data + tail)


def test_every_flipped_bit_is_refused_but_in_the_free_slot() -> None:
    data = sealed()
    free = range(header_end(data) + 96, header_end(data) + 192)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        if bit // 8 in free:
            open_sealed(changed)
            continue
        with pytest.raises(VaultError):
            open_sealed(changed)


def test_every_flipped_bit_but_in_the_slots_is_found_without_a_key() -> None:
    data = sealed()
    slots = range(header_end(data), header_end(data) + 192)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x40
        if place in slots:
            verify_signature(bytes(changed))
            continue
        with pytest.raises(VaultError):
            verify_signature(bytes(changed))


def test_segments_that_are_cut_swapped_or_repeated_are_refused() -> None:
    """On the boundaries of segments, with and without the signature, with and without the key."""
    data = sealed(BIG)
    start = len(data) - len(parts(data)[3])
    head, segments = data[:start], [data[at : at + MIB] for at in range(start, len(data), MIB)]
    assert len(segments) == 3
    first, second, third = segments
    for attack in (
        [first],
        [first, second],
        [first, third],
        [first, second, third, third],
        [first, second, second, third],
        [second, first, third],
        [first, third, second],
        [first, second[:-1] + third[:1], third],
    ):
        changed = head + b"".join(attack)
        for verify_key in (VERIFY_KEY, None):
            with pytest.raises((TamperedError, TruncatedError, ExtendedError)):
                open_sealed(changed, verify_key=verify_key)
        with pytest.raises((SignatureError, TruncatedError, ExtendedError)):
            verify_signature(changed)


def test_a_header_that_fits_the_cut_is_refused() -> None:
    """Cut at a boundary, and let the header promise just what is left."""
    data = sealed(BIG)
    header, slots, seal_, stream = parts(data)
    left = (1 << 20) - 40 - 16
    fields = {**json.loads(header), "plaintext_bytes": left}
    changed = join(canonical(fields), slots, seal_, stream[:MIB])
    with pytest.raises(TamperedError):
        open_sealed(changed, verify_key=None)
    with pytest.raises(SignatureError):
        verify_signature(changed)


@given(st.binary(max_size=300))
def test_any_header_gives_one_line_at_worst(header: bytes) -> None:
    for verify_key in (VERIFY_KEY, None):
        with pytest.raises(VaultError) as caught:
            open_sealed(with_header(sealed(), header), verify_key=verify_key)
        assert "\n" not in str(caught.value)


@given(st.binary(max_size=400))
def test_anything_behind_the_header_gives_one_line_at_worst(rest: bytes) -> None:
    data = sealed()
    for changed in (data[: header_end(data)] + rest, data[: header_end(data) + 40] + rest):
        with pytest.raises(VaultError) as caught:
            open_sealed(changed, verify_key=None)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "strategy-state"),
        ("store", "0123456789abcdee"),
        ("run", "digitz"),
        ("round", 8),
        ("created", "2031-05-17T08:00:00Z"),
        ("previous", "00" * 32),
        ("state", "00" * 32),
        ("commitment", "00" * 32),
        ("meta", {}),
        ("meta", {**META, "loss": 0.125}),
    ],
)
def test_a_changed_field_is_tampering(name: str, value: object) -> None:
    data = sealed()
    changed = with_header(data, canonical({**json.loads(parts(data)[0]), name: value}))
    with pytest.raises(TamperedError):
        open_sealed(changed, verify_key=None)
    with pytest.raises(SignatureError):
        verify_signature(changed)


def test_a_header_of_another_file_is_tampering() -> None:
    one, other = sealed(), sealed(address=Address("model", ADDRESS.store, "digits", 6))
    with pytest.raises(TamperedError):
        open_sealed(with_header(one, parts(other)[0]))


def test_slots_and_seals_of_another_file_are_found() -> None:
    """Both files are genuine, of one store, one round and one length."""
    one, other = parts(sealed()), parts(sealed())
    with pytest.raises(TamperedError, match="wrap list is swapped"):
        open_sealed(join(one[0], other[1], one[2], one[3]))
    with pytest.raises(SignatureError):
        open_sealed(join(one[0], one[1], other[2], one[3]))
    with pytest.raises(TamperedError):
        open_sealed(join(one[0], one[1], one[2], other[3]))
    with pytest.raises(TamperedError):
        open_sealed(join(one[0], other[1], one[2], other[3]))
    with pytest.raises(SignatureError, match="not signed by"):
        verify_signature(join(one[0], one[1], other[2], one[3]))
    with pytest.raises(SignatureError, match="stream is not the one"):
        verify_signature(join(one[0], one[1], one[2], other[3]))


def test_a_forger_with_the_model_key_cannot_sign() -> None:
    """A machine that serves the model has its key; it must not be able to make rounds."""
    forger = SigningKey.generate()
    for forged in (seal(TENSORS, signing_key=None), seal(TENSORS, signing_key=forger)):
        open_sealed(forged, verify_key=None)
        with pytest.raises(SignatureError):
            open_sealed(forged)
        genuine = parts(sealed())[2]
        header, slots, _, stream = parts(forged)
        with pytest.raises(SignatureError):
            open_sealed(join(header, slots, genuine, stream))


def test_a_forger_with_the_model_key_cannot_change_the_weights_of_a_signed_header() -> None:
    """The data key of the genuine file is known to the forger, who encrypts others under it."""
    data = sealed()
    head = read_head(buffer_reader(data), len(data))
    data_key = unwrap_data_key(head.slots, MODEL_KEY, head.bound, head.header.commitment)
    sink = MemorySink()
    file = TensorFile({**TENSORS, "weight": np.full((2, 3), 666, np.float32)})
    encrypt_to(sink, data_key, file.chunks(), file.nbytes, head.bound)
    forged = data[: head.stream_start] + bytes(sink.content)
    assert (open_sealed(forged, verify_key=None)[1]["weight"] == 666).all()
    with pytest.raises(SignatureError, match="stream is not the one that the coordinator signed"):
        open_sealed(forged)


@pytest.mark.parametrize("fails", ["check_stream", "view_tensors"])
def test_no_plaintext_stays_when_anything_fails_after_decryption(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers: list[memoryview] = []

    def remembered(size: int) -> memoryview:
        buffers.append(memoryview(bytearray(size)))
        return buffers[-1]

    def interrupted(*_: object) -> None:
        assert any(buffers[0]), "the plaintext was there"
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "new_buffer", remembered)
    owner = checkpoint if fails == "view_tensors" else Seal
    monkeypatch.setattr(owner, fails, interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_sealed(sealed())
    assert not any(buffers[0])


def test_a_file_that_belongs_elsewhere_is_refused_before_anything_is_used() -> None:
    data = sealed()
    for address in (
        Address("strategy-state", ADDRESS.store, "digits", 7),
        Address("model", "f" * 16, "digits", 7),
        Address("model", ADDRESS.store, "other", 7),
        Address("model", ADDRESS.store, "digits", 8),
    ):
        with pytest.raises(StoreError, match="wrong place: this is the model of round 7"):
            open_sealed(data, address=address)
        live: dict[str, Array] = {name: np.zeros_like(array) for name, array in TENSORS.items()}
        access = Access(address, MODEL_KEY, VERIFY_KEY)
        with pytest.raises(StoreError):
            open_into(live, Shadow(), buffer_reader(data), len(data), access)
        assert not live["weight"].any()


def test_a_length_that_is_lied_about_is_refused_before_memory_is_taken() -> None:
    """By a holder of the model key, who can wrap a data key for any header."""
    header, _, _, stream = parts(sealed())
    committed = commitment(bytes(32))
    fields = {**json.loads(header), "plaintext_bytes": 1 << 50, "commitment": committed}
    bound = Header.from_bytes(canonical(fields)).bound()
    slots = wrap_data_key(bytes(32), MODEL_KEY, bound) + bytes(96)
    with pytest.raises(TruncatedError, match="missing"):
        open_sealed(join(canonical(fields), slots, bytes(96), stream), verify_key=None)


def test_a_header_that_claims_too_much_is_refused() -> None:
    with pytest.raises(NotACheckpointError, match="claims 65537 bytes"):
        open_sealed(b"FVLT2\n" + (65537).to_bytes(4, "big") + bytes(70_000))


def test_live_arrays_change_only_when_all_is_verified() -> None:
    live: dict[str, Array] = {name: np.zeros_like(array) for name, array in BIG.items()}
    data, shadow = sealed(BIG), Shadow()
    changed = bytearray(data)
    changed[-1] ^= 1
    with pytest.raises(TamperedError):
        open_into(live, shadow, buffer_reader(changed), len(changed), ACCESS)
    forged = seal(BIG, signing_key=None)
    with pytest.raises(SignatureError):
        open_into(live, shadow, buffer_reader(forged), len(forged), ACCESS)
    assert not live["a"].any()
    assert open_into(live, shadow, buffer_reader(data), len(data), ACCESS).round == 7
    for name, array in BIG.items():
        np.testing.assert_array_equal(live[name], array)
    assert not any(shadow.take(100)), "no plaintext stays in the shadow"


def test_some_tensors_are_read_alone() -> None:
    data = bytearray(sealed(BIG))
    header, tensors = open_some(["a"], buffer_reader(data), len(data), ACCESS)
    assert header.round == 7
    assert set(tensors) == {"a"}
    np.testing.assert_array_equal(tensors["a"], BIG["a"])
    with pytest.raises(TensorError, match="no tensor 'c'"):
        open_some(["c"], buffer_reader(data), len(data), ACCESS)
    data[-(1 << 20) - 900_000] ^= 1
    with pytest.raises(TamperedError):
        open_some(["a", "b"], buffer_reader(data), len(data), ACCESS)


def test_a_header_is_verified_without_the_stream() -> None:
    data = bytearray(sealed())
    data[-1] ^= 1
    assert authenticate(buffer_reader(data), len(data), ACCESS).header.round == 7
    for place in (20, header_end(bytes(data)) + 20, header_end(bytes(data)) + 200):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(VaultError):
            authenticate(buffer_reader(changed), len(changed), ACCESS)


@pytest.mark.parametrize(
    "meta",
    [
        [("a", 1)],
        {"": 1},
        {5: 1},
        {"a": None},
        {"a": [1]},
        {"a": np.float32(1)},
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": 1 << 63},
        {"a": "\ud800"},
        {"a": "x" * 65_536},
    ],
)
def test_values_that_a_header_cannot_hold_are_refused(meta: Mapping[str, MetaValue]) -> None:
    with pytest.raises(HeaderError) as caught:
        seal(TENSORS, meta)
    assert "\n" not in str(caught.value)


def test_nothing_is_written_when_a_value_is_refused() -> None:
    sink = MemorySink()
    with pytest.raises(HeaderError):
        seal_to(sink, ADDRESS, TENSORS, {"a": float("nan")}, model_key=MODEL_KEY, signing_key=None)
    with pytest.raises(TensorError):
        seal_to(sink, ADDRESS, {"x": np.array("text")}, {}, model_key=MODEL_KEY, signing_key=None)
    assert sink.content == b""


def test_the_plaintext_is_a_file_of_the_safetensors_library() -> None:
    data = sealed()
    head = read_head(buffer_reader(data), len(data))
    data_key = unwrap_data_key(head.slots, MODEL_KEY, head.bound, head.header.commitment)
    out = memoryview(bytearray(head.header.plaintext_bytes))
    decrypt_into(out, data_key, buffer_reader(data), head.stream_start, head.bound)
    loaded = safetensors.numpy.load(bytes(out))
    np.testing.assert_array_equal(loaded["weight"], TENSORS["weight"])


def test_a_sealed_stream_that_holds_no_tensors_is_refused() -> None:
    """Only a holder of all keys can make one."""
    fields = {**json.loads(parts(sealed({}))[0]), "plaintext_bytes": 4}
    fields["commitment"] = commitment(bytes(32))
    header = Header.from_bytes(canonical(fields))
    sink, hashes = MemorySink(), HashList(60)
    encrypt_to(sink, bytes(32), [b"junk"], 4, header.bound(), hashes=hashes)
    seal_ = hashes.digest() + SIGNING_KEY.sign(header.bound(), hashes.digest())
    slots = wrap_data_key(bytes(32), MODEL_KEY, header.bound()) + bytes(96)
    with pytest.raises(TensorError):
        open_sealed(join(header.to_bytes(), slots, seal_, bytes(sink.content)))

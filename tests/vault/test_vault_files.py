import os
import sys
from pathlib import Path

import pytest
from vault_streams import AAD, FIRST, KEY, MIB, NEXT, message

from fedveil.vault.buffers import PatchableSink, new_buffer
from fedveil.vault.errors import TamperedError, TruncatedError
from fedveil.vault.files import file_reader, open_private, replace_file
from fedveil.vault.stream import decrypt_into, encrypt_to


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_short_writes_and_reads_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The operating system may take or give fewer bytes than it is asked to."""
    real_write, real_read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real_write(fd, data[:step], at))
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: real_read(fd, [into[0][:step]], at))
    content = message(2500)
    replace_file(tmp_path / "file", lambda sink: sink.write(memoryview(content)))
    assert (tmp_path / "file").read_bytes() == content
    with open_private(tmp_path / "file") as (descriptor, _):
        read = file_reader(descriptor)
        assert read(0, new_buffer(2500)) == content
        assert read(40, new_buffer(9)) == content[40:49]


def test_a_file_is_patched_before_it_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(sink: PatchableSink) -> None:
        sink.write(memoryview(b"head"))
        sink.write(memoryview(b"????"))
        sink.write(memoryview(b"body"))
        sink.write_at(4, memoryview(b"seal"))
        sink.write(memoryview(b", tail"))
        assert not path.exists()

    replace_file(path, write)
    assert path.read_bytes() == b"headsealbody, tail"


def test_a_reader_needs_no_position_and_moves_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with open_private(tmp_path / "file") as (descriptor, _):
        os.lseek(descriptor, 3, os.SEEK_SET)
        read = file_reader(descriptor)
        assert [bytes(read(at, new_buffer(2))) for at in (8, 0, 5)] == [b"89", b"01", b"56"]
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 3
        with pytest.raises(TruncatedError, match="3 bytes early"):
            read(9, new_buffer(4))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is told")
def test_the_disk_begins_with_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte but the last few MiB is sent off once, in order, after it was written."""
    sent: list[tuple[int, int]] = []
    written = 0
    real = os.posix_fadvise

    def advise(descriptor: int, begin: int, length: int, advice: int) -> None:
        sent.append((begin, length))
        assert begin + length <= written
        real(descriptor, begin, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", advise)

    def write(sink: PatchableSink) -> None:
        nonlocal written
        for _ in range(20):
            written += MIB
            sink.write(memoryview(bytes(MIB)))

    replace_file(tmp_path / "file", write)
    assert sent == [(0, 8 * MIB), (8 * MIB, 8 * MIB)]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_stream_comes_back_from_a_file(tmp_path: Path, threads: int) -> None:
    plaintext = message(FIRST + 9 * NEXT + 5)
    path = tmp_path / "file"

    def write(sink: PatchableSink) -> None:
        sink.write(memoryview(b"front"))
        encrypt_to(sink, KEY, [plaintext], len(plaintext), AAD, threads=threads)

    replace_file(path, write)
    out = new_buffer(len(plaintext))
    with open_private(path) as (descriptor, _):
        decrypt_into(out, KEY, file_reader(descriptor), 5, AAD, threads=threads)
    assert out == plaintext


@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_that_changes_while_it_is_read_gives_no_wrong_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """What was checked is what is used: a write after the read can change neither."""
    plaintext = message(FIRST + 2 * NEXT)
    path = tmp_path / "file"
    replace_file(path, lambda sink: encrypt_to(sink, KEY, [plaintext], len(plaintext), AAD))
    real = os.preadv

    def read_then_overwrite(descriptor: int, into: list[memoryview], at: int) -> int:
        done = real(descriptor, into, at)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes(done))
        return done

    monkeypatch.setattr(os, "preadv", read_then_overwrite)
    out = new_buffer(len(plaintext))
    with open_private(path) as (descriptor, _):
        decrypt_into(out, KEY, file_reader(descriptor), 0, AAD, threads=threads)
        assert out == plaintext
        with pytest.raises(TamperedError):
            decrypt_into(out, KEY, file_reader(descriptor), 0, AAD, threads=threads)

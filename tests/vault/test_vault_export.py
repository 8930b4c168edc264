import os
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from vault_files import KEK, SIGNING_KEY

from fedveil.vault.errors import SignatureError, StoreError, TamperedError
from fedveil.vault.export import export_plaintext
from fedveil.vault.store import ModelStore
from fedveil.vault.tensors import Array

TENSORS: dict[str, Array] = {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "step": np.array(3),
    "none": np.empty((0, 2)),
}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    with ModelStore.create(
        tmp_path / "model", KEK, "run", marks=None, signing_key=SIGNING_KEY
    ) as store:
        store.save(3, TENSORS, {}, None)
    return store


def test_the_library_reads_what_is_exported(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    export_plaintext(store, 3, path)
    loaded = safetensors.numpy.load_file(path)
    assert set(loaded) == set(TENSORS)
    for name, array in TENSORS.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_overwritten(store: ModelStore, tmp_path: Path) -> None:
    path, link = tmp_path / "there", tmp_path / "link"
    path.write_bytes(b"precious")
    link.symlink_to(tmp_path / "nowhere")
    for taken in (path, link):
        with pytest.raises(StoreError, match="exists already"):
            export_plaintext(store, 3, taken)
    assert path.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_no_plaintext_is_written_for_a_path_that_is_taken(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").write_bytes(b"precious")

    def write(*args: object) -> None:
        raise AssertionError("plaintext reached the disk")

    monkeypatch.setattr(os, "pwrite", write)
    with pytest.raises(StoreError, match="exists already"):
        export_plaintext(store, 3, tmp_path / "there")


def test_a_file_that_appears_meanwhile_is_not_overwritten(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, link = tmp_path / "there", os.link

    def late(source: Path, target: Path) -> None:
        path.write_bytes(b"precious")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(StoreError, match="exists already"):
        export_plaintext(store, 3, path)
    assert path.read_bytes() == b"precious"
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", "there"}


@pytest.mark.parametrize("name", ["pwrite", "fsync", "link"])
def test_a_failing_disk_leaves_no_plaintext(
    store: ModelStore, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, name, full)
    with pytest.raises(StoreError, match="No space left on device; nothing was left there"):
        export_plaintext(store, 3, tmp_path / "plain")
    assert {entry.name for entry in tmp_path.iterdir()} == {"model"}


def test_a_damaged_round_is_not_exported(store: ModelStore, tmp_path: Path) -> None:
    content = bytearray(store.path(3).read_bytes())
    content[-1] ^= 1
    store.path(3).write_bytes(content)
    with pytest.raises(TamperedError):
        export_plaintext(store, 3, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_a_round_that_is_not_signed_is_not_exported(store: ModelStore, tmp_path: Path) -> None:
    content = bytearray(store.path(3).read_bytes())
    content[10 + int.from_bytes(content[6:10], "big") + 250] ^= 1
    store.path(3).write_bytes(content)
    with pytest.raises(SignatureError):
        export_plaintext(store, 3, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()

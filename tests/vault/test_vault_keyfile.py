import base64
import json
import os
import stat
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, hmac

from fedveil.vault.errors import KeyFileError, KeyFileExistsError, KeyFileMissingError
from fedveil.vault.keyfile import Key, create_key, load_key, load_or_create_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.key"


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    mac = hmac.HMAC(key, hashes.SHA256())
    mac.update(data)
    return mac.finalize()


def fields(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(path.read_text())
    return found


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)


def test_a_created_key_is_loaded_again(path: Path) -> None:
    key = create_key(path)
    assert load_key(path) == key
    assert len(key.secret) == 32
    assert fields(path) == {
        "format": "fedveil-key-1",
        "key_id": key.key_id,
        "key": base64.b64encode(key.secret).decode(),
    }
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_key_file_is_private_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        create_key(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_key_ids_follow_rfc_5869() -> None:
    secret = bytes(range(32))
    extracted = hmac_sha256(bytes(32), secret)
    expected = hmac_sha256(extracted, b"fedveil/vault/key-id/1\x01")[:8]
    assert Key(secret).key_id == expected.hex()
    assert Key(secret).key_id != Key(bytes(32)).key_id


def test_two_keys_differ(tmp_path: Path) -> None:
    assert create_key(tmp_path / "a") != create_key(tmp_path / "b")


def test_printing_a_key_shows_no_secret() -> None:
    key = Key.generate()
    encoded = base64.b64encode(key.secret).decode()
    for text in (repr(key), str(key), f"{key}", f"{[key]}"):
        assert key.key_id in text
        assert encoded not in text
        assert key.secret.hex() not in text
        assert repr(key.secret) not in text


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(KeyFileError, match=f"not {length}"):
        Key(bytes(length))


def test_creating_never_replaces(path: Path) -> None:
    put(path, b"precious")
    with pytest.raises(KeyFileExistsError, match="exists already"):
        create_key(path)
    assert path.read_bytes() == b"precious"
    assert list(path.parent.iterdir()) == [path]


def test_creating_does_not_follow_a_dangling_link(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileExistsError):
        create_key(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(KeyFileMissingError, match="no key file at"):
        load_key(path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file or directory"):
        create_key(tmp_path / "none" / "key")


def test_a_full_disk_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        create_key(path)
    assert list(path.parent.iterdir()) == []


def test_a_symbolic_link_is_refused(path: Path, tmp_path: Path) -> None:
    create_key(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(KeyFileError, match="symbolic link"):
        load_key(link)


def test_a_link_put_there_after_the_check_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_key(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    monkeypatch.setattr(Path, "is_symlink", lambda _: False)
    with pytest.raises(KeyFileError, match="symbolic links"):
        load_key(link)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", "."):
        with pytest.raises(KeyFileError, match="not a regular file"):
            load_key(tmp_path / name)


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o666])
def test_a_file_that_others_may_use_is_refused(path: Path, mode: int) -> None:
    create_key(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}.*chmod 600"):
        load_key(path)


def test_a_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(path)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(KeyFileError, match=f"belongs to user {owner}, not to you"):
        load_key(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_given_to_another_user_is_refused(path: Path) -> None:
    create_key(path)
    os.chown(path, 12345, -1)
    with pytest.raises(KeyFileError, match="belongs to user 12345"):
        load_key(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 4000,
        b" " * 5000,
        b'{"format": "fedveil-key-1"}',
        b'{"format": "fedveil-key-2", "key_id": "0", "key": ""}',
        b'{"format": "fedveil-key-1", "key_id": "0", "key": 5}',
        b'{"format": "fedveil-key-1", "key_id": "0", "key": "AAAA"}',
        b'{"format": "fedveil-key-1", "key_id": "0", "key": "not base 64!"}',
        b'{"format": "fedveil-key-1", "key_id": "0", "key": "\xc3\xa9"}',
        b'{"format": "fedveil-key-1", "key_id": "0", "key": "AAAA", "more": 1}',
    ],
)
def test_a_malformed_file_is_refused(path: Path, content: bytes) -> None:
    put(path, content)
    with pytest.raises(KeyFileError, match="is not a key file of the format"):
        load_key(path)


@pytest.mark.parametrize("wrong", ["0123456789abcdef", 5, None, "x\ny" * 50])
def test_a_key_id_that_does_not_match_is_refused(path: Path, wrong: object) -> None:
    create_key(path)
    put(path, json.dumps({**fields(path), "key_id": wrong}).encode())
    with pytest.raises(KeyFileError, match="is damaged") as caught:
        load_key(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncate", "key_id", "mode", "extra"])
def test_no_error_shows_the_key(path: Path, damage: str) -> None:
    key = create_key(path)
    encoded = fields(path)["key"]
    if damage == "truncate":
        put(path, path.read_bytes()[:-3])
    elif damage == "key_id":
        put(path, json.dumps({**fields(path), "key_id": "0" * 16}).encode())
    elif damage == "mode":
        path.chmod(0o644)
    else:
        put(path, json.dumps({**fields(path), "more": 1}).encode())
    with pytest.raises(KeyFileError) as caught:
        load_key(path)
    text = "".join(traceback.format_exception(caught.value))
    assert encoded not in text
    assert key.secret.hex() not in text


def test_load_or_create_does_either(path: Path) -> None:
    created = load_or_create_key(path)
    assert load_or_create_key(path) == created


def test_load_or_create_does_not_replace_a_bad_file(path: Path) -> None:
    put(path, b"damaged")
    with pytest.raises(KeyFileError):
        load_or_create_key(path)
    assert path.read_bytes() == b"damaged"


def test_losing_the_race_gives_the_winners_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link
    winners: list[Key] = []

    def beaten(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        winners.append(create_key(path))
        link(source, target)

    monkeypatch.setattr(os, "link", beaten)
    assert load_or_create_key(path) == winners[0]
    assert list(path.parent.iterdir()) == [path]


def test_processes_at_once_get_one_key(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fedveil.vault.keyfile import *; "
        "print('ready', flush=True); sys.stdin.readline(); "
        "print(load_or_create_key(Path(sys.argv[1])).key_id)"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    found = {worker.communicate(timeout=30)[0].strip() for worker in workers}
    assert found == {load_key(path).key_id}

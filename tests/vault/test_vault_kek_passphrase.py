import base64
import getpass
import os
import pty
import select
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.vault.errors import KekError, KeyFileError, WrongKeyError
from fedveil.vault.kek import passphrase as passphrase_module
from fedveil.vault.kek.interface import WrappedKey
from fedveil.vault.kek.passphrase import Costs, PassphraseKek, open_passphrase
from fedveil.vault.kek.passphrase_input import ask_passphrase, normalised

PHRASE = "correct horse battery"
CHEAP = Costs(memory_kib=19 * 1024, passes=2, lanes=1)
SECRET = bytes(range(32, 64))
CONTEXT = b"context"
# The key of this vector was derived by argon2-cffi, the reference implementation of Argon2.
FROZEN_PHRASE = "pass\u00e9 correct horse"
FROZEN_KEY = bytes.fromhex("1c61be469e1c2f49f900e97d26fe756b525d7cae128de7aa84e681ae25d0b6c1")
FROZEN = WrappedKey(
    "passphrase",
    "passphrase-0001020304050607",
    bytes.fromhex(
        "404142434445464748494a4ba11cf355af61720dfd200a4eae30b86928a8e3217e00ca4bbf0b20775c9d2d91"
        "f8ff457580014f215104ecedb08618f0"
    ),
    {
        "salt": base64.b64encode(bytes(range(16))).decode(),
        "memory_kib": 19456,
        "passes": 2,
        "lanes": 1,
    },
)


def cheap(phrase: str = PHRASE, confirm: Callable[[], str] | None = None) -> PassphraseKek:
    return PassphraseKek(lambda: phrase, confirm, CHEAP)


def changed(**values: str | int) -> WrappedKey:
    return replace(FROZEN, parameters={**FROZEN.parameters, **values})


def no_derivation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise AssertionError("Argon2id was started")

    monkeypatch.setattr(passphrase_module, "Argon2id", refuse)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_argon2id_is_that_of_rfc_9106() -> None:
    kdf = Argon2id(
        salt=b"\x02" * 16,
        length=32,
        iterations=3,
        lanes=4,
        memory_cost=32,
        ad=b"\x04" * 12,
        secret=b"\x03" * 8,
    )
    assert kdf.derive(b"\x01" * 32).hex() == (
        "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"
    )


def test_the_frozen_vector_opens() -> None:
    assert cheap(FROZEN_PHRASE).unwrap(FROZEN, CONTEXT) == SECRET
    parts = (b"fedveil/vault/kek/1", b"passphrase", FROZEN.key_id.encode(), CONTEXT)
    associated = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    opened = AESGCM(FROZEN_KEY).decrypt(FROZEN.blob[:12], FROZEN.blob[12:], associated)
    assert opened == SECRET


def test_the_defaults_are_those_of_rfc_9106() -> None:
    wrapped = PassphraseKek(lambda: PHRASE).wrap(SECRET, CONTEXT)
    costs = {name: wrapped.parameters[name] for name in ("memory_kib", "passes", "lanes")}
    assert costs == {"memory_kib": 65536, "passes": 3, "lanes": 4}
    assert cheap().unwrap(wrapped, CONTEXT) == SECRET


@settings(max_examples=10)
@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=12, max_size=80).filter(
        lambda phrase: len(normalised(phrase)) >= 12
    ),
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=100),
)
def test_what_is_wrapped_is_unwrapped(phrase: str, secret: bytes, context: bytes) -> None:
    kek = cheap(phrase)
    wrapped = kek.wrap(secret, context)
    assert wrapped.key_id == kek.key_id
    assert kek.unwrap(wrapped, context) == secret
    other = cheap(phrase)
    again = other.rewrap(wrapped, context)
    assert other.unwrap(again, context) == secret
    assert again.key_id == other.key_id != wrapped.key_id


def test_a_name_is_the_front_of_a_fresh_salt() -> None:
    first, second = cheap().wrap(SECRET, CONTEXT), cheap().wrap(SECRET, CONTEXT)
    salts = [base64.b64decode(str(each.parameters["salt"])) for each in (first, second)]
    assert [len(salt) for salt in salts] == [16, 16]
    assert salts[0] != salts[1]
    assert first.key_id == f"passphrase-{salts[0][:8].hex()}"


def test_a_wrong_passphrase_is_refused() -> None:
    with pytest.raises(WrongKeyError, match=r"wrong passphrase .* cannot be told apart"):
        cheap("another phrase").unwrap(FROZEN, CONTEXT)


def test_another_context_does_not_open() -> None:
    kek = cheap(FROZEN_PHRASE)
    for act in (kek.unwrap, kek.rewrap):
        with pytest.raises(WrongKeyError, match="belongs to another store"):
            act(FROZEN, b"context2")


def test_every_flipped_bit_is_noticed() -> None:
    kek = cheap(FROZEN_PHRASE)
    for position in range(8 * len(FROZEN.blob)):
        flipped = bytearray(FROZEN.blob)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(WrongKeyError):
            kek.unwrap(replace(FROZEN, blob=bytes(flipped)), CONTEXT)


@pytest.mark.parametrize(
    "wrapped",
    [
        changed(salt=base64.b64encode(bytes(16)).decode()),
        changed(memory_kib=20000),
        changed(passes=3),
        changed(lanes=2),
        replace(FROZEN, key_id="passphrase-0001020304050608"),
    ],
)
def test_changed_parameters_are_noticed(wrapped: WrappedKey) -> None:
    with pytest.raises(WrongKeyError):
        cheap(FROZEN_PHRASE).unwrap(wrapped, CONTEXT)


def test_another_provider_is_named() -> None:
    with pytest.raises(WrongKeyError, match="of the provider 'file'"):
        cheap().unwrap(replace(FROZEN, provider="file"), CONTEXT)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"memory_kib": 64 * 1024 * 1024}, "memory_kib must be 19456 to 1048576, not 67108864"),
        ({"memory_kib": 1024 * 1024 + 1}, "memory_kib"),
        ({"memory_kib": 19 * 1024 - 1}, "memory_kib"),
        ({"memory_kib": -(2**62)}, "memory_kib"),
        ({"passes": 1}, "passes must be 2 to 16, not 1"),
        ({"passes": 17}, "passes"),
        ({"lanes": 0}, "lanes must be 1 to 16, not 0"),
        ({"lanes": 17}, "lanes"),
        ({"lanes": "1"}, "are not numbers"),
        ({"salt": 5}, "is not 16 bytes in base64"),
        ({"salt": "AAAA"}, "is not 16 bytes in base64"),
        ({"salt": "not base 64!"}, "is not 16 bytes in base64"),
        ({"more": 1}, "has 4 parameters of fixed names, not the 5 given"),
    ],
)
def test_hostile_parameters_are_refused_before_any_memory_is_taken(
    values: Mapping[str, str | int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_derivation(monkeypatch)
    with pytest.raises(KekError, match=said) as caught:
        cheap().unwrap(changed(**values), CONTEXT)
    assert not isinstance(caught.value, WrongKeyError)


def test_missing_parameters_are_refused() -> None:
    with pytest.raises(KekError, match="not the 0 given"):
        cheap().unwrap(replace(FROZEN, parameters={}), CONTEXT)


def test_wrapping_too_cheaply_is_refused() -> None:
    with pytest.raises(KekError, match="memory_kib must be 19456"):
        Costs(memory_kib=8)


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted:
        def __init__(self, **_: object) -> None:
            pass

        def derive(self, _: bytes) -> bytes:
            raise MemoryError

    monkeypatch.setattr(passphrase_module, "Argon2id", Exhausted)
    with pytest.raises(KekError, match="too little memory for Argon2id, which needs 19456 KiB"):
        cheap().unwrap(FROZEN, CONTEXT)


def test_a_key_is_derived_once(monkeypatch: pytest.MonkeyPatch) -> None:
    derived: list[object] = []

    def counting(**values: object) -> Argon2id:
        derived.append(values["salt"])
        return Argon2id(**values)  # type: ignore[arg-type]

    monkeypatch.setattr(passphrase_module, "Argon2id", counting)
    kek = cheap(FROZEN_PHRASE)
    for _ in range(3):
        kek.unwrap(FROZEN, CONTEXT)
        kek.unwrap(kek.wrap(SECRET, CONTEXT), CONTEXT)
    assert len(derived) == 2


def test_both_forms_of_a_letter_are_one_passphrase() -> None:
    wrapped = cheap("passe\u0301 correct horse").wrap(SECRET, CONTEXT)
    assert cheap("pass\u00e9 correct horse").unwrap(wrapped, CONTEXT) == SECRET


def test_spaces_count() -> None:
    wrapped = cheap(PHRASE).wrap(SECRET, CONTEXT)
    with pytest.raises(WrongKeyError):
        cheap(PHRASE + " ").unwrap(wrapped, CONTEXT)


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("", "the passphrase is empty"),
        ("two\nlines of it", "control character"),
        ("carriage return\r", "control character"),
        ("nul\0 nul nul nul", "control character"),
        ("no utf-8 \udcff here", "no UTF-8"),
        ("x" * 1025, "more than 1024 bytes"),
    ],
)
def test_what_is_no_passphrase_is_refused(phrase: str, said: str) -> None:
    for act in (lambda kek: kek.wrap(SECRET, CONTEXT), lambda kek: kek.unwrap(FROZEN, CONTEXT)):
        with pytest.raises(KekError, match=said):
            act(cheap(phrase))


@pytest.mark.parametrize("phrase", ["eleven char", "e\u0301" * 11])
def test_a_short_passphrase_does_not_wrap(phrase: str) -> None:
    with pytest.raises(KekError, match="has 11 characters and needs at least 12"):
        cheap(phrase).wrap(SECRET, CONTEXT)


def test_a_short_passphrase_may_unwrap() -> None:
    with pytest.raises(WrongKeyError):
        cheap("short").unwrap(FROZEN, CONTEXT)


def test_wrapping_asks_twice() -> None:
    asked: list[str] = []

    def confirm() -> str:
        asked.append("again")
        return PHRASE

    kek = cheap(PHRASE, confirm)
    kek.wrap(SECRET, CONTEXT)
    kek.wrap(SECRET, CONTEXT)
    assert asked == ["again"]


def test_two_passphrases_that_differ_wrap_nothing() -> None:
    with pytest.raises(KekError, match="two passphrases differ"):
        cheap(PHRASE, lambda: "correct hors battery").wrap(SECRET, CONTEXT)


def test_a_passphrase_that_has_opened_is_not_asked_for_again() -> None:
    def confirm() -> str:
        raise AssertionError("asked again")

    kek = cheap(FROZEN_PHRASE, confirm)
    kek.unwrap(FROZEN, CONTEXT)
    kek.rewrap(FROZEN, CONTEXT)


def test_a_passphrase_that_has_not_opened_is_asked_for_again() -> None:
    kek = cheap("mistyped phrase", lambda: PHRASE)
    with pytest.raises(WrongKeyError):
        kek.unwrap(FROZEN, CONTEXT)
    with pytest.raises(KekError, match="differ"):
        kek.wrap(SECRET, CONTEXT)


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_passphrase_file_is_read(tmp_path: Path, end: bytes) -> None:
    path = put(tmp_path / "phrase", FROZEN_PHRASE.encode() + end)
    assert open_passphrase(str(path)).unwrap(FROZEN, CONTEXT) == SECRET


def test_one_line_end_only_is_taken_off(tmp_path: Path) -> None:
    path = put(tmp_path / "phrase", FROZEN_PHRASE.encode() + b"\n\n")
    with pytest.raises(KekError, match="control character"):
        open_passphrase(str(path)).unwrap(FROZEN, CONTEXT)


def test_a_file_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDVEIL_PASSPHRASE", "of the environment")
    path = put(tmp_path / "phrase", FROZEN_PHRASE.encode())
    assert open_passphrase(str(path)).unwrap(FROZEN, CONTEXT) == SECRET


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = put(tmp_path / "phrase", PHRASE.encode())
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}"):
        open_passphrase(str(path))


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "phrase", PHRASE.encode())
    (tmp_path / "link").symlink_to(tmp_path / "phrase")
    with pytest.raises(KeyFileError, match="symbolic link"):
        open_passphrase(str(tmp_path / "link"))


def test_a_long_file_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KekError, match="more than 1024 bytes"):
        open_passphrase(str(put(tmp_path / "long", b"x" * 1026)))
    with pytest.raises(KekError, match="is not UTF-8 text"):
        open_passphrase(str(put(tmp_path / "bytes", b"\xff" * 20)))


@pytest.mark.parametrize("phrase", [PHRASE, "x" * 300, "a/b/" * 100])
def test_a_passphrase_in_the_place_of_a_path_is_not_shown(phrase: str) -> None:
    with pytest.raises(KekError, match="never by a passphrase") as caught:
        open_passphrase(phrase)
    assert phrase not in "".join(traceback.format_exception(caught.value))


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVEIL_PASSPHRASE", FROZEN_PHRASE)
    assert open_passphrase("").unwrap(FROZEN, CONTEXT) == SECRET


def test_an_empty_variable_is_an_empty_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVEIL_PASSPHRASE", "")
    with pytest.raises(KekError, match="is empty"):
        open_passphrase("").unwrap(FROZEN, CONTEXT)


def test_without_a_source_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDVEIL_PASSPHRASE", raising=False)
    with Path(os.devnull).open() as nothing:
        for stdin in (nothing, None):
            monkeypatch.setattr(sys, "stdin", stdin)
            with pytest.raises(KekError, match="set FEDVEIL_PASSPHRASE, name a file"):
                open_passphrase("")


def test_a_terminal_is_asked_and_shows_nothing() -> None:
    program = (
        "from fedveil.vault.kek.passphrase import open_passphrase; kek = open_passphrase(''); "
        "assert kek.unwrap(kek.wrap(bytes(32), b''), b'') == bytes(32); print('opened')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "FEDVEIL_PASSPHRASE"}
    outer, inner = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env=environment,
        start_new_session=True,
    )
    os.close(inner)
    try:
        shown = b""
        for awaited, typed in ((b"Passphrase: ", PHRASE), (b"again: ", PHRASE), (b"opened", "")):
            while awaited not in shown:
                assert select.select([outer], [], [], 30)[0], shown
                shown += os.read(outer, 1)
            if typed:
                os.write(outer, typed.encode() + b"\n")
        assert child.wait(timeout=30) == 0
    finally:
        child.kill()
        child.wait(timeout=30)
        os.close(outer)
    assert PHRASE.encode() not in shown


def test_a_terminal_that_would_show_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def shows(_: str) -> str:
        warnings.warn("Can not control echo", getpass.GetPassWarning, stacklevel=2)
        return PHRASE

    monkeypatch.setattr(getpass, "getpass", shows)
    with pytest.raises(KekError, match="this terminal would show the passphrase"):
        ask_passphrase("Passphrase: ")


def test_the_end_of_input_is_no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_: str) -> str:
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", ended)
    with pytest.raises(KekError, match="no passphrase was entered"):
        ask_passphrase("Passphrase: ")


def test_nothing_shows_a_secret() -> None:
    kek = cheap(FROZEN_PHRASE)
    kek.unwrap(FROZEN, CONTEXT)
    with pytest.raises(WrongKeyError) as caught:
        kek.unwrap(FROZEN, b"other")
    assert caught.value.__cause__ is None
    for text in (repr(kek), repr(FROZEN), "".join(traceback.format_exception(caught.value))):
        assert FROZEN_PHRASE not in text
        for secret in (FROZEN_KEY, SECRET):
            assert secret.hex() not in text
            assert repr(secret) not in text

from collections.abc import Mapping

import pytest

from fedveil.vault.errors import KekError
from fedveil.vault.kek.address import check_address
from fedveil.vault.kek.interface import MOST_BLOB_BYTES, WrappedKey
from fedveil.vault.kek.sealing import frame


@pytest.mark.parametrize("name", ["", "x" * 257, "a\nb", "\x1b[2J"])
def test_a_name_that_could_not_be_shown_is_refused(name: str) -> None:
    with pytest.raises(KekError, match="provider of a wrapped key"):
        WrappedKey(name, "id", b"x", {})
    with pytest.raises(KekError, match="key_id of a wrapped key"):
        WrappedKey("file", name, b"x", {})


@pytest.mark.parametrize("blob", [b"", bytes(MOST_BLOB_BYTES + 1)])
def test_a_blob_of_another_length_is_refused(blob: bytes) -> None:
    with pytest.raises(KekError, match="1 to 8192 bytes"):
        WrappedKey("file", "id", blob, {})


@pytest.mark.parametrize(
    "parameters",
    [{"a": ""}, {"a": "x" * 257}, {"": 1}, {"a": 2**63}, {"a": True}, {"a\n": 1}],
)
def test_a_parameter_that_is_not_allowed_is_refused(parameters: Mapping[str, str | int]) -> None:
    with pytest.raises(KekError, match=r"parameter .* is not allowed"):
        WrappedKey("file", "id", b"x", parameters)


def test_there_are_at_most_16_parameters() -> None:
    WrappedKey("file", "id", b"x", {str(each): each for each in range(16)})
    with pytest.raises(KekError, match="at most 16"):
        WrappedKey("file", "id", b"x", {str(each): each for each in range(17)})


def test_parameters_are_a_copy() -> None:
    given: dict[str, str | int] = {"a": 1}
    wrapped = WrappedKey("file", "id", b"x", given)
    given["a"] = 2
    assert wrapped.parameters["a"] == 1


def test_no_two_lists_of_parts_are_framed_alike() -> None:
    lists = [(), (b"",), (b"", b""), (b"ab",), (b"a", b"b"), (b"a", b"", b"b"), (b"ab", b"")]
    assert len({frame(*parts) for parts in lists}) == len(lists)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://vault.example.org", "https://vault.example.org"),
        ("https://vault.example.org:8200/behind/", "https://vault.example.org:8200"),
        ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
        ("http://127.4.5.6", "http://127.4.5.6"),
        ("http://[::1]:8200", "http://[::1]:8200"),
        ("http://localhost:8200", "http://localhost:8200"),
    ],
)
def test_an_address_that_keeps_the_secret_is_accepted(url: str, shown: str) -> None:
    assert check_address(url, "VAULT_ADDR") == shown


@pytest.mark.parametrize(
    "url",
    [
        "http://vault.example.org:8200",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "http://127.0.0.1.example.org",
        "http://localhost.example.org",
        "http://[::2]",
    ],
)
def test_an_address_that_sends_in_clear_is_refused(url: str) -> None:
    with pytest.raises(KekError, match=r"VAULT_ADDR is http://.* in clear; use https://"):
        check_address(url, "VAULT_ADDR")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "vault.example.org",
        "vault.example.org:8200",
        "https://",
        "https://:8200",
        "ftp://127.0.0.1",
        "https://host:port",
        "https://host:99999",
        "https://[::1",
        "https://a b",
        "https://host\n",
        "https://host?query",
        "https://host#fragment",
        "http://127.0.0.1@elsewhere.example.org",
        "https://user:hunter2@host",
    ],
)
def test_what_is_no_plain_address_is_refused(url: str) -> None:
    with pytest.raises(KekError, match="VAULT_ADDR is not the address of a service") as caught:
        check_address(url, "VAULT_ADDR")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)

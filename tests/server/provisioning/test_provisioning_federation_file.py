from __future__ import annotations

from pathlib import Path

import pytest
from provisioned import FEDERATION

from fedveil.server.provisioning.addresses import host_and_port
from fedveil.server.provisioning.errors import ProvisionError
from fedveil.server.provisioning.federation_file import (
    CoordinatorEntry,
    FederationFile,
    listens_on,
    read_federation,
)
from fedveil.server.provisioning.supernode_keys import new_supernode_key


def read(folder: Path, text: str) -> FederationFile:
    path = folder / "federation.toml"
    path.write_text(text)
    return read_federation(path)


def test_the_least_file_is_a_coordinator_and_clients(tmp_path: Path) -> None:
    file = read(tmp_path, FEDERATION)
    assert list(file.clients) == ["ward-a", "ward-b", "ward-c"]
    assert file.run.scenario == "digits"
    assert file.coordinator.port == 8000


@pytest.mark.parametrize(
    ("replaced", "by", "complaint"),
    [
        ("fedveil-federation-1", "fedveil-federation-2", "format"),
        ('"wards"', f'"{"w" * 21}"', "name"),
        ('"wards"', '"1st"', "name"),
        ("[clients.ward-b]", "[clients.'Ward B']", "clients"),
        ("[clients.ward-b]", f"[clients.{'w' * 41}]", "clients"),
        ("[clients.ward-b]", "[clients.coordinator]", "the name coordinator is taken"),
        ("[clients.ward-b]", "[clients.updates]", "the name updates is taken"),
        ("[clients.ward-b]", "[clients.'../ward']", "clients"),
        ("[clients.ward-b]", "[inference.ward-a]\nhosts = ['localhost']", "take two names"),
        (
            "[clients.ward-b]",
            "[clients.ward-b]\nplaces = 1",
            "unknown setting clients.ward-b.places",
        ),
        ("[clients.ward-b]", "[clients.ward-b]\nidentity = 'abc'", "44 characters"),
        ("'127.0.0.1'", "'10.0.0.256'", "neither an IP address nor a DNS name"),
        ("'127.0.0.1'", "'a b'", "neither an IP address nor a DNS name"),
        ("hosts = ['127.0.0.1']", "hosts = []", "hosts"),
        ("hosts = ['127.0.0.1']", "hosts = ['127.0.0.1']\nport = 70000", "port"),
        ("hosts = ['127.0.0.1']", "hosts = ['127.0.0.1']\nlisten = 'here'", "no IP address"),
        (
            "[coordinator]",
            "[run]\nsettings.federation.clients = 2\n[coordinator]",
            "leave settings",
        ),
        ("[coordinator]", "[containers]\nimage = 'a b'\n[coordinator]", "image"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, replaced: str, by: str, complaint: str
) -> None:
    assert replaced in FEDERATION
    with pytest.raises(ProvisionError, match=complaint) as caught:
        read(tmp_path, FEDERATION.replace(replaced, by, 1))
    assert "\n" not in str(caught.value)
    assert "federation.toml" in str(caught.value)


def test_two_clients_do_not_share_a_place(tmp_path: Path) -> None:
    text = FEDERATION.replace("[clients.ward-a]", "[clients.ward-a]\nplace = 4").replace(
        "[clients.ward-b]", "[clients.ward-b]\nplace = 4"
    )
    with pytest.raises(ProvisionError, match="ward-a and ward-b both have place 4"):
        read(tmp_path, text)


def test_an_owner_gives_both_public_keys_or_none(tmp_path: Path) -> None:
    _, public = new_supernode_key()
    entry = f"[clients.ward-a]\nsupernode_key = '{public}'"
    with pytest.raises(ProvisionError, match="give both or neither"):
        read(tmp_path, FEDERATION.replace("[clients.ward-a]", entry))


@pytest.mark.parametrize(
    ("hosts", "listen", "expected"),
    [
        (["127.0.0.1", "localhost", "::1"], None, "127.0.0.1"),
        (["fl.example.org"], None, "0.0.0.0"),  # noqa: S104
        (["127.0.0.1", "10.1.2.3"], None, "0.0.0.0"),  # noqa: S104
        (["fl.example.org"], "10.1.2.3", "10.1.2.3"),
    ],
)
def test_a_server_listens_where_its_hosts_can_be_reached(
    hosts: list[str], listen: str | None, expected: str
) -> None:
    assert listens_on(CoordinatorEntry(hosts=tuple(hosts), listen=listen)) == expected


def test_an_ipv6_address_is_bracketed() -> None:
    assert host_and_port("::1", 8000) == "[::1]:8000"
    assert host_and_port("fl.example.org", 8000) == "fl.example.org:8000"

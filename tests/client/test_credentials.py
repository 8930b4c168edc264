"""A deployed client's identity, roster and floors: read from its own files, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedveil.client.credentials import credentials_of_node, needs_secure_aggregation
from fedveil.errors import FedveilError
from fedveil.home import default_identity_file, default_roster_file
from fedveil.rosters import create_identity, load_identity, read_roster, write_roster
from fedveil.secagg.identity import Identity, Roster


def node(**config: str | float) -> Context:
    named = {key.replace("_", "-"): value for key, value in config.items()}
    return Context(1, 2, named, RecordDict(), {})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    create_identity(tmp_path / "me.json", "me")
    write_roster(tmp_path / "roster.toml", Roster({"you": Identity.generate("you").public_key}))
    return {"identity": str(tmp_path / "me.json"), "roster": str(tmp_path / "roster.toml")}


def test_a_client_knows_itself_without_being_told(files: dict[str, str]) -> None:
    found = credentials_of_node(node(**files))
    assert set(found.roster.keys) == {"me", "you"}
    assert found.roster.keys["me"] == found.identity.public_key


def test_files_lie_at_home_unless_named() -> None:
    create_identity(default_identity_file(), "me")
    write_roster(default_roster_file(), Roster({}))
    assert credentials_of_node(node()).identity.name == "me"


def test_only_its_own_configuration_lets_a_node_answer_in_clear() -> None:
    assert needs_secure_aggregation(node())
    assert needs_secure_aggregation(node(secagg="on"))
    assert not needs_secure_aggregation(node(secagg="off"))


def test_floors_come_from_the_nodes_own_configuration(files: dict[str, str]) -> None:
    floors = credentials_of_node(
        node(**files, secagg_min_clients=5, secagg_max_clip_norm=2.5)
    ).floors
    assert (floors.min_clients, floors.max_clip_norm) == (5, 2.5)


@pytest.mark.parametrize(
    ("floor", "says"),
    [
        ({"secagg_min_clients": "many"}, "must be a number"),
        ({"secagg_min_clients": 2.5}, "whole number"),
        ({"secagg_min_clients": 1}, "at least 2"),
        ({"secagg_corrupt_share": 0.7}, "corrupt_share"),
    ],
)
def test_floors_that_make_no_sense(
    files: dict[str, str], floor: dict[str, str | float], says: str
) -> None:
    with pytest.raises(FedveilError, match=says):
        credentials_of_node(node(**files, **floor))


def test_an_identity_that_others_can_read_is_refused(files: dict[str, str]) -> None:
    Path(files["identity"]).chmod(0o640)
    with pytest.raises(FedveilError, match="chmod 600"):
        credentials_of_node(node(**files))


def test_an_identity_behind_a_link_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(files["identity"])
    with pytest.raises(FedveilError, match="symbolic link"):
        load_identity(tmp_path / "link")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "7",
        json.dumps({"format": "fedveil-identity-1", "name": "me"}),
        json.dumps({"format": "other", "name": "me", "private_key": "AAAA"}),
        json.dumps({"format": "fedveil-identity-1", "name": "me", "private_key": "!"}),
        json.dumps({"format": "fedveil-identity-1", "name": "me", "private_key": 7}),
    ],
)
def test_a_malformed_identity_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "identity"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(FedveilError, match="not an identity file") as caught:
        load_identity(path)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not a roster"),
        ('format = "fedveil-roster-1"\nclients = 7', "not a roster"),
        ('format = "fedveil-roster-1"\n[clients]\na = "x"', "no public key"),
        ('format = "fedveil-roster-1"\n[clients]\n"a b" = "x"', "no public key"),
        ("nonsense", "is not TOML"),
    ],
)
def test_a_malformed_roster_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "roster.toml"
    path.write_text(content)
    with pytest.raises(FedveilError, match=says):
        read_roster(path)


def test_a_roster_survives_writing_and_reading(tmp_path: Path) -> None:
    roster = Roster({name: Identity.generate(name).public_key for name in ("b", "a", "ü.x")})
    write_roster(tmp_path / "r", roster)
    assert read_roster(tmp_path / "r").keys == roster.keys

"""Who is registered: the keys in the kit, as far as the signed roster has their clients."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from provisioned import FEDERATION, make_kits

from fedveil.audit_log.trail import AuditTrail, read_events, trail
from fedveil.rosters import read_roster, write_roster
from fedveil.server.provisioning import (
    CoordinatorKit,
    SignedRoster,
    check_kit,
    layout,
    read_kit,
    read_trusted_roster,
)
from fedveil.server.registration import Registration

WITHOUT_B = FEDERATION.replace("[clients.ward-b]\n", "")


class SuperLink:
    """Stands for Flower's, as far as registration goes."""

    def __init__(self) -> None:
        self.nodes: dict[str, str] = {}

    def ask(self, *command: str) -> Mapping[str, object]:
        match command:
            case ("supernode", "register", _, _, "--name", name):
                number = str(100 + len(self.nodes))
                self.nodes[number] = name
                return {"node-id": number}
            case ("supernode", "unregister", number, _):
                del self.nodes[number]
                return {}
        raise AssertionError(command)

    @contextmanager
    def __call__(self) -> Iterator[SuperLink]:
        yield self

    @property
    def names(self) -> list[str]:
        return sorted(self.nodes.values())


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    make_kits(tmp_path / "kits")
    return tmp_path / "kits"


def roster_of(kit: Path) -> Callable[[], SignedRoster]:
    found = read_kit(kit, CoordinatorKit)
    return lambda: read_trusted_roster(kit / layout.ROSTER, found.authority, found.federation)


def following(kit: Path) -> tuple[Registration, SuperLink]:
    superlink = SuperLink()
    registration = Registration(
        kit / layout.SUPERNODES,
        roster_of(kit),
        kit / "registered.json",
        superlink,
        "federation",
        AuditTrail(kit),
    )
    registration.follow()
    return registration, superlink


def test_those_in_both_are_registered_and_that_is_written_down(kits: Path) -> None:
    kit = kits / "coordinator"
    _, superlink = following(kit)
    assert superlink.names == ["ward-a", "ward-b", "ward-c"]
    events, _ = read_events(trail(kit)[0])
    assert [(e["event"], e["client"]) for e in events] == [
        ("register", ward) for ward in superlink.names
    ]
    assert sorted(json.loads((kit / "registered.json").read_text())) == superlink.names


def test_a_key_that_a_revoked_client_left_behind_opens_nothing(
    kits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The kit was handed over: the new roster is put in place, the old key is forgotten there."""
    kit = kits / "coordinator"
    registration, superlink = following(kit)
    stale = kit / layout.SUPERNODES / "ward-b.pub"
    left = stale.read_bytes()
    make_kits(kits, WITHOUT_B, revoke=["ward-b"])
    stale.write_bytes(left)
    stale.chmod(0o600)
    registration.follow()
    registration.follow()
    assert superlink.names == ["ward-a", "ward-c"]
    told = [r.getMessage() for r in caplog.records if "ward-b is not in the signed" in r.message]
    assert len(told) == 1
    # Nor after a start, and the check of the kit says it.
    assert following(kit)[1].names == ["ward-a", "ward-c"]
    (finding,) = [f for f in check_kit(kit) if "ward-b" in f.text]
    assert finding.is_wrong
    assert "is not in the roster (revoked?), so that it is not registered" in finding.text
    stale.unlink()
    assert not [f for f in check_kit(kit) if "ward-b" in f.text]


def test_a_key_of_a_stranger_is_not_registered(kits: Path) -> None:
    kit = kits / "coordinator"
    registration, superlink = following(kit)
    shutil.copy(kit / layout.SUPERNODES / "ward-a.pub", kit / layout.SUPERNODES / "mallory.pub")
    registration.follow()
    assert superlink.names == ["ward-a", "ward-b", "ward-c"]


@pytest.mark.parametrize("attack", ["unsigned", "other-federation", "older", "gone"])
def test_a_roster_that_cannot_be_trusted_lets_nobody_in(
    kits: Path, tmp_path: Path, attack: str
) -> None:
    kit = kits / "coordinator"
    old = (kit / layout.ROSTER).read_bytes()
    left = (kit / layout.SUPERNODES / "ward-b.pub").read_bytes()
    make_kits(kits, WITHOUT_B, revoke=["ward-b"])
    registration, superlink = following(kit)
    (kit / layout.SUPERNODES / "ward-b.pub").write_bytes(left)
    path = kit / layout.ROSTER
    match attack:
        case "unsigned":
            keys = tmp_path / "old.toml"
            keys.write_bytes(old)
            write_roster(path, read_roster(keys))
        case "other-federation":
            (tmp_path / "other").mkdir()
            make_kits(tmp_path / "other" / "kits")
            shutil.copy(tmp_path / "other" / "kits" / "coordinator" / layout.ROSTER, path)
        case "older":
            path.write_bytes(old)
        case "gone":
            path.unlink()
    registration.follow()
    # Who was registered stays, and nobody comes.
    assert superlink.names == ["ward-a", "ward-c"]


def test_one_who_is_added_is_registered_while_the_server_runs(kits: Path) -> None:
    registration, superlink = following(kits / "coordinator")
    make_kits(kits, FEDERATION + "[clients.ward-d]\n")
    registration.follow()
    assert superlink.names == ["ward-a", "ward-b", "ward-c", "ward-d"]


def test_nobody_is_registered_where_it_cannot_be_written_down(kits: Path) -> None:
    kit = kits / "coordinator"
    trail(kit)[0].mkdir()
    _, superlink = following(kit)
    assert superlink.names == []

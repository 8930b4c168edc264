"""Every defect that a kit can have is found, and named in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from provisioned import FEDERATION, NOW, PREDICTOR, contents, make_kits

from fedveil.rosters import read_roster, write_roster
from fedveil.secagg.identity import Identity, Roster
from fedveil.server.inference.tokens import add_token
from fedveil.server.provisioning import (
    ClientKit,
    CoordinatorKit,
    KitError,
    check_kit,
    node_config,
    node_config_text,
    read_kit,
    settle,
)
from fedveil.server.provisioning.kit_file import read_any_kit
from fedveil.server.provisioning.supernode_keys import new_supernode_key


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two federations of the same names, made once; tests change copies."""
    folder = tmp_path_factory.mktemp("kits")
    for name in ("kits", "others"):
        (folder / name).mkdir(mode=0o700)
        make_kits(folder / name / "kits", FEDERATION + PREDICTOR)
    return folder


@pytest.fixture
def kits(pristine: Path, tmp_path: Path) -> Path:
    for name in ("kits", "others"):
        shutil.copytree(pristine / name / "kits", tmp_path / name)
    for kit in ("coordinator", "ward-a", "ward-b", "predictor"):
        settle(tmp_path / "kits" / kit)
    return tmp_path / "kits"


def replace_private(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)


def swap(kits: Path, file: str) -> None:
    """Put the same file of the other federation in the place of a kit's."""
    shutil.copy(kits.parent / "others" / file, kits / file)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


Spoil = Callable[[Path], object]

DEFECTS: list[tuple[str, Spoil, str]] = [
    # Certificates and keys of servers.
    ("coordinator", lambda k: swap(k, "coordinator/server.key"), "is not the key of server.pem"),
    ("coordinator", lambda k: swap(k, "coordinator/server.pem"), "not signed by the authority"),
    ("coordinator", lambda k: swap(k, "coordinator/ca.pem"), "not signed by the authority"),
    ("coordinator", lambda k: (k / "coordinator/ca.pem").unlink(), "ca.pem: cannot be read"),
    ("coordinator", lambda k: (k / "coordinator/server.key").unlink(), "no key file"),
    (
        "coordinator",
        lambda k: edit(k / "coordinator/kit.toml", '"127.0.0.1:8000"', '"fl.example.org:8000"'),
        "the certificate is not good for fl.example.org",
    ),
    ("predictor", lambda k: swap(k, "predictor/server.pem"), "not signed by the authority"),
    ("predictor", lambda k: (k / "predictor/tokens.json").unlink(), "no such file of tokens"),
    # Keys of the models.
    ("coordinator", lambda k: swap(k, "coordinator/keys/signing.key"), "and the kit names"),
    ("coordinator", lambda k: (k / "coordinator/keys/model.key").unlink(), "no key file"),
    # Permissions.
    ("ward-a", lambda k: (k / "ward-a").chmod(0o755), "has mode 0755; run: chmod 700"),
    ("ward-a", lambda k: (k / "ward-a/supernode.key").chmod(0o640), "mode 0640"),
    ("ward-a", lambda k: (k / "ward-a/policy.toml").chmod(0o666), "mode 0666"),
    ("ward-a", lambda k: (k / "ward-a/kit.toml").chmod(0o602), "mode 0602; run: chmod go="),
    (
        "ward-a",
        lambda k: (
            (k / "ward-a/ca.pem").rename(k / "ward-a/real.pem"),
            (k / "ward-a/ca.pem").symlink_to("real.pem"),
        ),
        "is a symbolic link",
    ),
    # The roster, and who is registered.
    ("ward-a", lambda k: swap(k, "ward-a/roster.toml"), "not what the federation's authority"),
    (
        "ward-a",
        lambda k: write_roster(k / "ward-a/roster.toml", read_roster(k / "ward-a/roster.toml")),
        "bears no signature",
    ),
    (
        "ward-a",
        lambda k: write_roster(
            k / "ward-a/roster.toml", Roster({"spy": Identity.generate("spy").public_key})
        ),
        "bears no signature",
    ),
    ("ward-a", lambda k: swap(k, "ward-a/identity.json"), "lists another key for ward-a"),
    (
        "ward-a",
        lambda k: shutil.copy(k / "ward-b/identity.json", k / "ward-a/identity.json"),
        "is that of ward-b, not of ward-a",
    ),
    (
        "coordinator",
        lambda k: (k / "coordinator/supernodes/ward-b.pub").unlink(),
        "ward-b cannot connect",
    ),
    (
        "coordinator",
        lambda k: replace_private(
            k / "coordinator/supernodes/spy.pub", new_supernode_key()[1].encode()
        ),
        "spy is not in the roster",
    ),
    (
        "coordinator",
        lambda k: edit(k / "coordinator/app/pyproject.toml", "clients = 3", "clients = 4"),
        "says federation.clients = 4, and the roster 3",
    ),
    # A client's own keys and files.
    ("ward-a", lambda k: swap(k, "ward-a/supernode.key"), "is not the key of supernode.pub"),
    ("ward-a", lambda k: (k / "ward-a/supernode.key").unlink(), "supernode.key: is missing"),
    ("ward-a", lambda k: (k / "ward-a/identity.json").unlink(), "identity.json: is missing"),
    (
        "ward-a",
        lambda k: edit(k / "ward-a/policy.toml", "epsilon = 8.0", "epsilon = -1"),
        "epsilon",
    ),
    ("ward-a", lambda k: (k / "ward-a/policy.toml").unlink(), "there is no policy"),
    (
        "ward-a",
        lambda k: (k / "ward-a/node.toml").write_text("partition-id = 2"),
        "partition-id follows from the kit",
    ),
    ("ward-a", lambda k: (k / "ward-a/node.toml").write_text("data-dir ="), "is not TOML"),
    # Versions.
    (
        "ward-a",
        lambda k: edit(k / "ward-a/kit.toml", 'flower = "', 'flower = "0.'),
        "is installed; install the version that the federation uses",
    ),
]


@pytest.mark.parametrize(("name", "spoil", "said"), DEFECTS, ids=[said for _, _, said in DEFECTS])
def test_a_defect_is_named(kits: Path, name: str, spoil: Spoil, said: str) -> None:
    assert not [f for f in check_kit(kits / name, NOW) if f.is_wrong]
    spoil(kits)
    found = [finding.text for finding in check_kit(kits / name, NOW) if finding.is_wrong]
    assert any(said in text for text in found), found
    assert not [text for text in found if "\n" in text]


def test_dates_are_looked_at(kits: Path) -> None:
    def said(name: str, days: float) -> str:
        return " | ".join(str(f) for f in check_kit(kits / name, NOW + timedelta(days=days)))

    assert said("ward-a", 300) == said("coordinator", 300) == ""
    assert "note: a certificate ends on 2027-11-30; renew it with" in said("coordinator", 340)
    assert "wrong:" in said("coordinator", 366)
    assert "the certificate expired on 2027-11-30" in said("coordinator", 366)
    assert "is valid from 2026-11-30 11:00 UTC on only" in said("coordinator", -1)
    assert "note:" in said("ward-a", 3640)
    assert "wrong:" in said("ward-a", 3651)
    assert "wrong:" in said("ward-a", -1)


def test_notes_are_no_reason_to_refuse(kits: Path) -> None:
    notes = check_kit(kits / "predictor", NOW)
    assert [finding.is_wrong for finding in notes] == [False, False]
    add_token(kits / "predictor" / "tokens.json", "web-shop", ("infer",))
    (kits / "predictor" / "run").mkdir(mode=0o700)
    assert check_kit(kits / "predictor", NOW) == []
    edit(kits / "ward-a" / "policy.toml", "# expires = 2027-12-31", "expires = 2026-11-01")
    (note,) = check_kit(kits / "ward-a", NOW)
    assert str(note).startswith("note: ")
    assert "expired on 2026-11-01" in note.text


def test_what_fills_up_in_use_is_not_looked_at(kits: Path) -> None:
    for folder in ("runs/digits", "marks", "flwr/apps"):
        (kits / "coordinator" / folder).mkdir(parents=True)
        (kits / "coordinator" / folder / "file").touch(mode=0o644)
    assert check_kit(kits / "coordinator", NOW) == []


def test_a_kit_that_was_moved_is_settled(kits: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved here" / "100%"
    moved.parent.mkdir(mode=0o700)
    (kits / "coordinator").rename(moved)
    findings = check_kit(moved, NOW)
    assert [f.is_wrong for f in findings] == [False, False]
    assert all("fedveil kit settle" in f.text for f in findings)
    before = contents(moved)
    written = settle(moved)
    assert {str(path.relative_to(moved)) for path in written} == {
        "flwr/config.toml",
        "deploy/fedveil-wards-coordinator.service",
    }
    assert {p for p, c in contents(moved).items() if c != before[p]} == {
        str(path.relative_to(moved)) for path in written
    }
    assert check_kit(moved, NOW) == []
    assert settle(moved) == []


def test_flower_reads_the_node_configuration_as_it_is_meant(kits: Path) -> None:
    from flwr.common.config import parse_config_args

    kit = kits / "ward-b"
    (kit / "node.toml").write_text('data-dir = "/my data"\nsecagg-min-clients = 3\nnoted = 1.5')
    expected = {
        "data-dir": "/my data",
        "secagg-min-clients": 3,
        "noted": 1.5,
        "partition-id": 1,
        "num-partitions": 3,
        **{n: str(kit / f"{n}.toml") for n in ("roster", "policy")},
        "identity": str(kit / "identity.json"),
        "ledger": str(kit / "ledger.db"),
    }
    assert node_config(kit) == expected
    assert parse_config_args([node_config_text(kit)]) == expected


@pytest.mark.parametrize(
    "line",
    ["data-dir = 'a\"b'", "data-dir = 'a\\b'", "'a b' = 1", "x = nan", "x = [1]", "x = 2026-01-01"],
)
def test_what_flower_would_misread_is_refused(kits: Path, line: str) -> None:
    (kits / "ward-a" / "node.toml").write_text(line)
    with pytest.raises(KitError, match=r"node\.toml"):
        node_config(kits / "ward-a")


def test_a_folder_that_is_no_kit_says_so(tmp_path: Path, kits: Path) -> None:
    with pytest.raises(KitError, match="is no kit"):
        check_kit(tmp_path)
    with pytest.raises(KitError, match=r"kit of ward-a \(client\), and the one of a coordinator"):
        read_kit(kits / "ward-a", CoordinatorKit)
    assert read_kit(kits / "ward-a", ClientKit).superlink_address == "127.0.0.1:8000"
    edit(kits / "ward-a" / "kit.toml", "fedveil-kit-1", "fedveil-kit-9")
    with pytest.raises(KitError, match="fedveil-kit-9"):
        read_any_kit(kits / "ward-a")

"""SuperNode keys and signed rosters: Flower and ssh-keygen read what we write, forgeries fail."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from hypothesis import given
from hypothesis import strategies as st

from fedveil.rosters import read_roster, write_roster
from fedveil.secagg.identity import Identity, Roster
from fedveil.server.provisioning.errors import KitError, ProvisionError
from fedveil.server.provisioning.signed_roster import (
    parse_signed_roster,
    read_signed_roster,
    sign_roster,
)
from fedveil.server.provisioning.supernode_keys import (
    load_supernode_key,
    new_supernode_key,
    parse_supernode_key,
)
from fedveil.vault.errors import KeyFileError

AUTHORITY = Identity.generate("wards")
MEMBERS = Roster({name: Identity.generate(name).public_key for name in ("ward-a", "ward-b")})


def write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def test_flower_reads_both_halves(tmp_path: Path) -> None:
    private, public = new_supernode_key()
    write_private(tmp_path / "supernode.key", private)
    (tmp_path / "ward-a.pub").write_text(f"{public} ward-a\n")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    # As flwr.supernode.cli.flower_supernode does.
    key = load_ssh_private_key((tmp_path / "supernode.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert try_load_public_key(tmp_path / "ward-a.pub") == public_key_to_bytes(key.public_key())
    assert load_supernode_key(tmp_path / "supernode.key") == public
    assert parse_supernode_key(f"{public} a comment") == public


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
@pytest.mark.parametrize(
    ("kind", "accepted"), [(["ecdsa", "-b", "384"], True), (["ed25519"], False)]
)
def test_a_key_that_an_owner_made_with_ssh_keygen(
    tmp_path: Path, kind: list[str], accepted: bool
) -> None:
    path = tmp_path / "supernode.key"
    subprocess.run(
        ["ssh-keygen", "-q", "-N", "", "-t", *kind, "-f", str(path)],  # noqa: S607
        timeout=60,
        check=True,
        capture_output=True,
    )
    public = path.with_suffix(".key.pub").read_text()
    if accepted:
        assert load_supernode_key(path) == parse_supernode_key(public)
        return
    with pytest.raises(ProvisionError, match="ecdsa-sha2-nistp384"):
        parse_supernode_key(public)
    with pytest.raises(ProvisionError, match="holds no EC key"):
        load_supernode_key(path)


def test_a_private_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "supernode.key"
    path.write_bytes(new_supernode_key()[0])
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="mode 0644"):
        load_supernode_key(path)


def test_a_signed_roster_is_a_roster_and_comes_back(tmp_path: Path) -> None:
    signed = sign_roster(AUTHORITY, 3, "2026-11-30T12:00:00+00:00", 2, MEMBERS)
    path = tmp_path / "roster.toml"
    path.write_bytes(signed.to_toml())
    assert read_signed_roster(path) == signed
    read_signed_roster(path).check(AUTHORITY.public_key)
    assert dict(read_roster(path).keys) == dict(MEMBERS.keys)


def test_a_roster_that_was_changed_by_hand_bears_no_signature(tmp_path: Path) -> None:
    path = tmp_path / "roster.toml"
    write_roster(path, MEMBERS)
    with pytest.raises(KitError, match="bears no signature"):
        read_signed_roster(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("serial = 3", "serial = 4"),
        ("places = 2", "places = 3"),
        ('federation = "wards"', 'federation = "words"'),
        ("2026-11-30T", "2026-12-30T"),
        ("ward-b = ", "ward-d = "),
    ],
)
def test_whatever_is_changed_in_a_roster_breaks_its_signature(old: str, new: str) -> None:
    text = sign_roster(AUTHORITY, 3, "2026-11-30T12:00:00+00:00", 2, MEMBERS).to_toml().decode()
    assert text.count(old) == 1
    forged = parse_signed_roster(text.replace(old, new).encode(), "roster.toml")
    with pytest.raises(KitError, match="is not what the federation's authority signed"):
        forged.check(AUTHORITY.public_key)


def test_a_client_that_the_server_adds_breaks_the_signature() -> None:
    signed = sign_roster(AUTHORITY, 3, "now", 2, MEMBERS)
    spy = Roster({**MEMBERS.keys, "spy": Identity.generate("spy").public_key})
    forged = sign_roster(Identity.generate("wards"), 3, "now", 2, spy)
    with pytest.raises(KitError):
        forged.check(AUTHORITY.public_key)
    grafted = type(signed)("wards", 3, "now", 2, spy, signed.signature)
    with pytest.raises(KitError):
        grafted.check(AUTHORITY.public_key)


names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)


@given(
    st.tuples(names, names, st.integers(1, 999)),
    st.tuples(names, names, st.integers(1, 999)),
)
def test_no_two_rosters_have_one_signature(
    one: tuple[str, str, int], other: tuple[str, str, int]
) -> None:
    # Names and numbers run into one another unless each part's length is signed, too.
    first, second = (
        sign_roster(AUTHORITY, serial, issued, 1, Roster({name: b"k" * 32}))
        for issued, name, serial in (one, other)
    )
    assert (first.signature == second.signature) == (one == other)

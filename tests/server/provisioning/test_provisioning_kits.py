"""Making kits and changing them: nobody else's files move, nothing is lost, whatever happens."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from provisioned import FEDERATION, NOW, PREDICTOR, contents, make_kits

from fedveil.client.policy_file import read_policy
from fedveil.errors import FedveilError
from fedveil.rosters import create_identity, load_identity, show_public_key
from fedveil.server.provisioning import check_kit
from fedveil.server.provisioning.certificates import load_certificate, load_tls_key
from fedveil.server.provisioning.errors import ProvisionError
from fedveil.server.provisioning.signed_roster import read_signed_roster
from fedveil.server.provisioning.supernode_keys import load_supernode_key, new_supernode_key
from fedveil.vault.keyfile import load_key
from fedveil.vault.lock import WriterLock
from fedveil.vault.signing import load_signing_key

WARDS = ("ward-a", "ward-b", "ward-c")
WITH_D = FEDERATION + "[clients.ward-d]\n"
WITHOUT_B = FEDERATION.replace("[clients.ward-b]\n", "")


def wrong(kit: Path) -> list[str]:
    return [finding.text for finding in check_kit(kit, NOW) if finding.is_wrong]


def roster_names(kit: Path) -> list[str]:
    return sorted(read_signed_roster(kit / "roster.toml").roster.keys)


def test_a_kit_for_each_party_all_of_them_in_order(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    outcome = make_kits(kits, FEDERATION + PREDICTOR)
    made = [change.party for change in outcome.changes]
    assert made == ["ca", "coordinator", *WARDS, "predictor"]
    assert {change.what for change in outcome.changes} == {"made"}
    for name in made[1:]:
        assert wrong(kits / name) == [], name
    for ward in WARDS:
        identity = load_identity(kits / ward / "identity.json")
        assert read_signed_roster(kits / ward / "roster.toml").roster.keys[ward] == (
            identity.public_key
        )
        registered = (kits / "coordinator" / "supernodes" / f"{ward}.pub").read_text()
        assert registered.startswith(load_supernode_key(kits / ward / "supernode.key"))
        assert read_policy(kits / ward / "policy.toml").datasets["digits"].epsilon == 8.0


def test_nothing_is_open_to_others_and_secrets_are_where_they_belong(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    old = os.umask(0)
    try:
        make_kits(kits, FEDERATION + PREDICTOR)
    finally:
        os.umask(old)
    modes = {
        path.relative_to(kits): stat.S_IMODE(path.stat().st_mode)
        for path in [kits, *kits.rglob("*")]
    }
    for path, mode in modes.items():
        is_open = (kits / path).is_dir() or path.parent.name == "bin"
        assert mode == (0o700 if is_open else 0o600), path
    authority = (kits / "ca" / "ca.key").read_bytes()
    for name in ("coordinator", *WARDS, "predictor"):
        assert authority not in contents(kits / name).values()
    secrets = [
        (kits / w / f).read_bytes() for w in WARDS for f in ("supernode.key", "identity.json")
    ]
    for name in ("ca", "coordinator", "predictor"):
        held = contents(kits / name).values()
        assert not [secret for secret in secrets if secret in held]
    assert not (kits / "ca" / "keys").exists()


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits, FEDERATION + PREDICTOR)
    before = contents(kits)
    outcome = make_kits(kits, FEDERATION + PREDICTOR, now=NOW + timedelta(days=20))
    assert outcome.changes == ()
    assert contents(kits) == before


def test_an_added_client_touches_the_others_rosters_only(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits, FEDERATION + PREDICTOR)
    (kits / "ward-a" / "policy.toml").write_text("edited by its owner")
    (kits / "ward-a" / "ledger.db").write_text("spent")
    before = contents(kits)
    outcome = make_kits(kits, FEDERATION + "[clients.ward-d]\n" + PREDICTOR)
    after = contents(kits)

    changed = {path for path in before if after.get(path) != before[path]}
    parties = {path for path in changed if not path.startswith("ca/")}
    assert parties == {
        *(f"{ward}/roster.toml" for ward in WARDS),
        "coordinator/roster.toml",
        "coordinator/app/pyproject.toml",
    }
    told = {change.party: change for change in outcome.changes}
    assert told["ward-a"].files == ("roster.toml",)
    assert set(told["coordinator"].files) == {
        "roster.toml",
        "app/pyproject.toml",
        "supernodes/ward-d.pub",
    }
    assert told["ward-d"].what == "made"
    assert outcome.serial == 2
    for name in ("ward-b", "ward-d", "coordinator"):
        assert wrong(kits / name) == []
    # Once more than before, and nobody's place has moved.
    assert read_signed_roster(kits / "ward-a" / "roster.toml").places == 4


def test_a_revoked_client_is_gone_from_rosters_and_registration(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits)
    revoked = contents(kits / "ward-b")
    before = contents(kits)
    outcome = make_kits(kits, WITHOUT_B, revoke=["ward-b"])
    after = contents(kits)

    for name in ("ward-a", "ward-c", "coordinator"):
        assert roster_names(kits / name) == ["ward-a", "ward-c"]
        assert wrong(kits / name) == []
    assert not (kits / "coordinator" / "supernodes" / "ward-b.pub").exists()
    assert not (kits / "ward-b").exists()
    # Nothing is lost: the kit was moved aside as it was, keys and all.
    assert contents(kits / "revoked" / "ward-b") == revoked
    changed = {path for path in before if path in after and after[path] != before[path]}
    assert {path for path in changed if not path.startswith("ca/")} == {
        "ward-a/roster.toml",
        "ward-c/roster.toml",
        "coordinator/roster.toml",
    }
    told = {change.party: change for change in outcome.changes}
    assert told["coordinator"].removed == ("supernodes/ward-b.pub",)
    # With the roster that it has, the revoked client is told.
    shutil.copy(kits / "ward-a" / "roster.toml", kits / "revoked" / "ward-b" / "roster.toml")
    assert any("does not list ward-b" in text for text in wrong(kits / "revoked" / "ward-b"))


def test_a_client_is_not_revoked_by_leaving_it_out(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits)
    before = contents(kits)
    with pytest.raises(ProvisionError, match="put it back, or say --revoke ward-b"):
        make_kits(kits, WITHOUT_B)
    with pytest.raises(ProvisionError, match="take ward-b out of the file"):
        make_kits(kits, revoke=["ward-b"])
    with pytest.raises(ProvisionError, match="was never provisioned"):
        make_kits(kits, revoke=["ward-x"])
    assert contents(kits) == before


def test_a_revoked_name_and_place_are_not_taken_again(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits)
    make_kits(kits, WITHOUT_B, revoke=["ward-b"])
    with pytest.raises(ProvisionError, match="ward-b was revoked on 2026-11-30"):
        make_kits(kits, FEDERATION)
    make_kits(kits, WITHOUT_B + "[clients.ward-d]\n")
    from fedveil.server.provisioning import ClientKit, read_kit

    assert read_kit(kits / "ward-d", ClientKit).place == 3
    assert read_kit(kits / "ward-c", ClientKit).place == 2


def test_a_kit_that_was_handed_over_gets_its_new_files_apart(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits)
    away = tmp_path / "away"
    (kits / "ward-a").rename(away)
    (kits / "coordinator").rename(tmp_path / "server")
    assert make_kits(kits).changes == ()

    outcome = make_kits(kits, WITH_D.replace("[clients.ward-b]\n", ""), revoke=["ward-b"])
    told = {change.party: change for change in outcome.changes}
    assert told["ward-a"].folder == kits / "updates" / "ward-a"
    assert contents(kits / "updates" / "ward-a").keys() == {"roster.toml"}
    assert told["coordinator"].removed == ("supernodes/ward-b.pub",)

    for name, folder in (("ward-a", away), ("coordinator", tmp_path / "server")):
        shutil.copytree(kits / "updates" / name, folder, dirs_exist_ok=True)
    assert wrong(away) == []
    # What was not removed on the coordinator's machine is found there.
    (finding,) = wrong(tmp_path / "server")
    assert "ward-b is not in the roster" in finding
    (tmp_path / "server" / "supernodes" / "ward-b.pub").unlink()
    assert wrong(tmp_path / "server") == []


def test_a_renewed_certificate_keeps_the_key_and_touches_nothing_else(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits, FEDERATION + PREDICTOR)
    before = contents(kits)
    later = NOW + timedelta(days=400)
    (note, _) = make_kits(kits, FEDERATION + PREDICTOR, now=later).notes
    assert "coordinator: the certificate expired on 2027-11-30" in note
    assert any("expired" in f.text for f in check_kit(kits / "coordinator", later) if f.is_wrong)

    outcome = make_kits(kits, FEDERATION + PREDICTOR, renew=["coordinator"], now=later)
    assert [(c.party, c.files) for c in outcome.changes] == [("coordinator", ("server.pem",))]
    after = contents(kits)
    assert {p for p in before if after[p] != before[p]} == {"coordinator/server.pem"}
    assert [f for f in check_kit(kits / "coordinator", later) if f.is_wrong] == []


def test_a_renewed_certificate_of_a_kit_that_was_handed_over_needs_no_private_key(
    tmp_path: Path,
) -> None:
    kits = tmp_path / "kits"
    make_kits(kits)
    (kits / "coordinator").rename(tmp_path / "server")
    later = NOW + timedelta(days=400)
    make_kits(kits, renew=["coordinator"], now=later)
    assert contents(kits / "updates" / "coordinator").keys() == {"server.pem"}
    shutil.copytree(kits / "updates" / "coordinator", tmp_path / "server", dirs_exist_ok=True)
    assert [f for f in check_kit(tmp_path / "server", later) if f.is_wrong] == []


def test_a_renewed_authority_goes_to_everybody(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits)
    later = NOW + timedelta(days=3600)
    outcome = make_kits(kits, renew=["ca", "coordinator"], now=later)
    told = {change.party: change.files for change in outcome.changes}
    assert told == {
        "ca": ("ca.pem",),
        "coordinator": ("ca.pem", "server.pem"),
        **dict.fromkeys(WARDS, ("ca.pem",)),
    }
    much_later = later + timedelta(days=300)
    for name in ("coordinator", *WARDS):
        assert [f for f in check_kit(kits / name, much_later) if f.is_wrong] == []


def test_a_client_has_no_certificate_to_renew(tmp_path: Path) -> None:
    with pytest.raises(ProvisionError, match="a client has no certificate"):
        make_kits(tmp_path / "kits", renew=["ward-a"])
    assert not (tmp_path / "kits" / "ca").exists()


def test_an_owner_may_keep_its_private_keys(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    identity = create_identity(tmp_path / "identity.json", "ward-b")
    private, public = new_supernode_key()
    text = FEDERATION.replace(
        "[clients.ward-b]",
        f'[clients.ward-b]\nidentity = "{show_public_key(identity.public_key)}"\n'
        f'supernode_key = "{public} ward-b"',
    )
    make_kits(kits, text)
    assert not (kits / "ward-b" / "identity.json").exists()
    assert not (kits / "ward-b" / "supernode.key").exists()
    assert len(wrong(kits / "ward-b")) == 2
    (kits / "ward-b" / "supernode.key").touch(mode=0o600)
    (kits / "ward-b" / "supernode.key").write_bytes(private)
    shutil.copy(tmp_path / "identity.json", kits / "ward-b")
    assert wrong(kits / "ward-b") == []
    assert make_kits(kits, text).changes == ()
    other = text.replace(show_public_key(identity.public_key), show_public_key(b"k" * 32))
    with pytest.raises(ProvisionError, match="other keys for ward-b"):
        make_kits(kits, other)


def test_an_inference_service_opens_models_with_a_key_of_its_own(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits, FEDERATION + PREDICTOR)
    own = load_key(kits / "predictor" / "keys" / "model.key")
    assert load_key(kits / "coordinator" / "keys" / "predictor.key") == own
    assert load_key(kits / "coordinator" / "keys" / "model.key") != own
    signer = load_signing_key(kits / "coordinator" / "keys" / "signing.key")
    assert signer.verify_key.to_text() in (kits / "predictor" / "bin" / "start").read_text()
    assert not (kits / "predictor" / "keys" / "signing.key").exists()


def test_a_changed_address_goes_to_everybody_and_asks_for_a_certificate(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits)
    moved = FEDERATION.replace("['127.0.0.1']", "['fl.example.org']")
    outcome = make_kits(kits, moved)
    (note,) = outcome.notes
    assert note == (
        "coordinator: the certificate is not good for fl.example.org; --renew coordinator makes a "
        "new one"
    )
    assert {c.party for c in outcome.changes} == {"coordinator", *WARDS}
    assert make_kits(kits, moved, renew=["coordinator"]).notes == ()
    assert wrong(kits / "coordinator") == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (FEDERATION.replace("wards", "words"), "kits of the federation wards"),
        (FEDERATION.replace("[clients.ward-a]", "[clients.ward-a]\nplace = 1"), "a place stays"),
        (WITH_D + "place = 2\n", "ward-d wants place 2, which ward-c has"),
        (
            FEDERATION.replace("[clients.ward-a]", "[inference.ward-a]\nhosts = ['localhost']"),
            "was provisioned as client and is inference",
        ),
    ],
)
def test_what_contradicts_the_kits_is_refused_before_anything_is_written(
    tmp_path: Path, text: str, complaint: str
) -> None:
    kits = tmp_path / "kits"
    make_kits(kits)
    before = contents(kits)
    with pytest.raises(FedveilError, match=complaint):
        make_kits(kits, text)
    assert contents(kits) == before


def test_too_few_clients_for_the_run(tmp_path: Path) -> None:
    text = FEDERATION.replace("[clients.ward-b]\n[clients.ward-c]\n", "")
    with pytest.raises(FedveilError, match="min_clients"):
        make_kits(tmp_path / "kits", text)
    assert not (tmp_path / "kits" / "ca").exists()


def test_kits_without_their_authority_are_left_alone(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits)
    (kits / "ca").rename(tmp_path / "offline")
    before = contents(kits)
    with pytest.raises(ProvisionError, match="there is no authority"):
        make_kits(kits)
    assert contents(kits) == before
    (kits / "ward-a").rename(tmp_path / "away")
    (tmp_path / "offline" / "ca.key").rename(tmp_path / "ca.key")
    (tmp_path / "offline").rename(kits / "ca")
    with pytest.raises(ProvisionError, match="kits are changed where its keys are"):
        make_kits(kits)


def test_a_folder_that_others_may_look_into_is_refused(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    kits.mkdir(mode=0o755)
    with pytest.raises(ProvisionError, match="chmod 700"):
        make_kits(kits)


def test_a_stranger_s_folder_is_not_overwritten(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    (kits / "ward-b").mkdir(parents=True, mode=0o700)
    kits.chmod(0o700)
    (kits / "ward-b" / "thesis.txt").write_text("years of work")
    with pytest.raises(ProvisionError, match="is there and is no kit"):
        make_kits(kits)
    assert contents(kits).keys() == {".lock", "ward-b/thesis.txt"}


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits)
    lock = WriterLock(kits / ".lock")
    lock.acquire()
    with pytest.raises(ProvisionError, match="another `fedveil provision`"):
        make_kits(kits)
    lock.release()
    make_kits(kits)


_KILLED_AT = """
import os, sys
from pathlib import Path
sys.path[:0] = {paths!r}
left = int(sys.argv[2])
import pathlib
import fedveil.vault.files as files
import fedveil.server.provisioning.writing as writing

def dying(step):
    def counted(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return step(*arguments, **options)
    return counted

# Every step after which the disk looks different: a file or a folder gets its name, or goes.
for name in ("rename", "replace", "unlink", "chmod"):
    setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name)))
os.link = dying(os.link)
from provisioned import make_kits
make_kits(Path(sys.argv[1]), sys.argv[3], revoke=sys.argv[4:])
"""


def moments(steps: int, stride: int) -> list[object]:
    """Return every step; of each stride one is tried always, the others with the slow tests."""
    return [
        pytest.param(step, marks=[] if step % stride == stride - 1 else [pytest.mark.slow])
        for step in range(steps)
    ]


def killed_after(steps: int, kits: Path, text: str, *revoke: str) -> bool:
    """Provision in a process that ends without a word after so many steps; tell whether it did."""
    code = _KILLED_AT.format(paths=[path for path in sys.path if path])
    done = subprocess.run(
        [sys.executable, "-c", code, str(kits), str(steps), text, *revoke],
        timeout=120,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 9), done.stderr
    return done.returncode == 9


@pytest.mark.parametrize("steps", moments(115, 20))
def test_a_run_that_is_killed_is_completed_by_the_next(tmp_path: Path, steps: int) -> None:
    kits = tmp_path / "kits"
    assert killed_after(steps, kits, FEDERATION + PREDICTOR) or steps > 100
    there = {p.parent.name: p.read_bytes() for p in kits.glob("[a-z]*/identity.json")}
    make_kits(kits, FEDERATION + PREDICTOR)
    for name in ("coordinator", *WARDS, "predictor"):
        assert wrong(kits / name) == []
    # A kit that was complete may have been handed over already: its keys stay.
    for name, identity in there.items():
        assert (kits / name / "identity.json").read_bytes() == identity
    assert not list(kits.glob(".*.new"))
    assert make_kits(kits, FEDERATION + PREDICTOR).changes == ()


@pytest.mark.parametrize("steps", moments(32, 8))
def test_a_change_that_is_killed_loses_nothing_and_is_completed(tmp_path: Path, steps: int) -> None:
    kits = tmp_path / "kits"
    make_kits(kits)
    before = contents(kits)
    text = WITH_D.replace("[clients.ward-b]\n", "")
    killed_after(steps, kits, text, "ward-b")
    # Whatever happened, no key of anybody has changed, and every file is whole.
    held = contents(kits)
    for path, content in before.items():
        if path.endswith((".key", "identity.json", "policy.toml")):
            assert content in (held.get(path), held.get(f"revoked/{path}")), path
    roster = read_signed_roster(kits / "ward-a" / "roster.toml")
    roster.check(load_identity(kits / "ca" / "authority.json").public_key)

    make_kits(kits, text, revoke=["ward-b"] if (kits / "ward-b").exists() else [])
    for name in ("coordinator", "ward-a", "ward-c", "ward-d"):
        assert wrong(kits / name) == []
        assert roster_names(kits / name) == ["ward-a", "ward-c", "ward-d"]
    assert (kits / "revoked" / "ward-b" / "identity.json").is_file()


def test_the_authority_s_key_signs_what_the_kits_show(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    make_kits(kits)
    certificate = load_certificate(kits / "coordinator" / "server.pem")
    certificate.verify_directly_issued_by(load_certificate(kits / "ca" / "ca.pem"))
    load_tls_key(kits / "ca" / "ca.key")

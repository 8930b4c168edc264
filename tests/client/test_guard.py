"""The owner's guard: decides before a record is read, and tells the server a class of reason."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from ledgers import DELTA, ledger_at

from fedveil.client import app
from fedveil.client.credentials import Credentials
from fedveil.client.guard import Guard, guard_of_node
from fedveil.client.policy_file import PolicyFileError, read_policy
from fedveil.client.shared_noise import training_release
from fedveil.config import Config
from fedveil.flower import set_identity
from fedveil.home import default_ledger_file, default_policy_file
from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.ledger_entries import spend
from fedveil.privacy.policy import Policy
from fedveil.privacy.policy_check import PolicyRefusedError, Reason
from fedveil.rosters import show_public_key
from fedveil.secagg.floors import Floors
from fedveil.secagg.identity import Identity, Roster

ROUND = Release(0.25, 2.0, 4)


def policy(**changes: object) -> Policy:
    data = {"tasks": ["digits"], "epsilon": 7.125, "delta": DELTA}
    return Policy.model_validate(
        {"format": "fedveil-policy-1", "datasets": {"wards": data}, **changes}
    )


def settings(**dp: object) -> Config:
    return Config.model_validate(
        {"task": {"name": "digits"}, "dp": {"noise_multiplier": 2.0, **dp}}
    )


def message(kind: str, config: Config) -> Message:
    set_identity(1, 1)
    asked = ConfigRecord({"config": config.model_dump_json(), "round": 1, "attempt": 1})
    content = RecordDict({"config": asked, "arrays": ArrayRecord()})
    return Message(content, dst_node_id=2, message_type=kind)


def node(**config: str | int) -> Context:
    named = {key.replace("_", "-"): value for key, value in config.items()}
    return Context(1, 2, {"partition-id": 0, "num-partitions": 10, **named}, RecordDict(), {})


class RecordReadError(Exception):
    """A test's way to stop where a task would be made and its records read."""


@pytest.fixture
def _no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise RecordReadError

    monkeypatch.setattr(app, "create_task", stop)
    app._cached_task.cache_clear()
    app._cached_preflight.cache_clear()


def no_keys(_: Context) -> Credentials:
    pytest.fail("no keys are needed to refuse")


REQUESTS = {
    "query": lambda config, found: app.join(
        message("query", config), node(), no_keys, lambda _: True, found
    ),
    "train": lambda config, found: app.train(message("train", config), node(), found),
    "evaluate": lambda config, found: app.evaluate(message("evaluate", config), node(), found),
}


@pytest.mark.usefixtures("_no_records")
@pytest.mark.parametrize("kind", REQUESTS)
def test_a_refused_request_reads_no_record_and_leaves_no_trace(tmp_path: Path, kind: str) -> None:
    found = Guard(policy(expires=date(2001, 1, 1)), ledger_at(tmp_path), "1")
    with pytest.raises(PolicyRefusedError, match="expired"):
        REQUESTS[kind](settings(metrics="noisy"), found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_records")
@pytest.mark.parametrize(
    ("kind", "released"), [("train", ROUND), ("evaluate", Release(1.0, 20.0, 1))]
)
def test_the_charge_is_on_the_disk_before_a_record_is_read(
    tmp_path: Path, kind: str, released: Release
) -> None:
    with pytest.raises(RecordReadError):
        REQUESTS[kind](settings(metrics="noisy"), Guard(policy(), ledger_at(tmp_path), "1"))
    (entry,) = ledger_at(tmp_path).read().entries
    assert (entry.purpose, entry.releases, entry.dataset) == (kind, (released,), "wards")


@pytest.mark.usefixtures("_no_records")
def test_a_budget_is_held_over_runs_and_messages_that_come_twice(tmp_path: Path) -> None:
    bears = policy(
        datasets={
            "wards": {
                "tasks": ["digits"],
                "epsilon": pld_epsilon([Release(0.25, 2.0, 12)], DELTA),
                "delta": DELTA,
            }
        }
    )
    asked = settings()
    for run in ("1", "1", "2"):
        with pytest.raises(RecordReadError):
            REQUESTS["train"](asked, Guard(bears, ledger_at(tmp_path), run))
    for run in ("2", "3"):
        found = Guard(bears, ledger_at(tmp_path), run)
        for kind in ("query", "train"):
            with pytest.raises(PolicyRefusedError, match=r"\(budget\): .* budget does not bear it"):
                REQUESTS[kind](asked, found)
    # Before the noise is known, only what is spent counts.
    unknown = settings(noise_multiplier=None, target_epsilon=1.0)
    with pytest.raises(PolicyRefusedError, match="budget"):
        Guard(bears, ledger_at(tmp_path), "3").admit(unknown)
    assert spend(ledger_at(tmp_path).read().entries, "wards").releases == (Release(0.25, 2.0, 12),)


def test_a_server_cannot_leave_the_noise_open_when_it_asks_to_train(tmp_path: Path) -> None:
    asked = settings(noise_multiplier=None, target_epsilon=1.0)
    found = Guard(policy(), ledger_at(tmp_path), "1")
    found.admit(asked)
    with pytest.raises(PolicyRefusedError, match=r"\(noise\)"):
        found.charge(asked, "train", 1, 1)


@pytest.mark.parametrize("dp", [{"unit": "none"}, {"insecure_seed": 7}, {"metrics": "clear"}])
def test_what_is_not_private_is_refused_under_a_budget(tmp_path: Path, dp: dict[str, int]) -> None:
    found = Guard(policy(), ledger_at(tmp_path), "1")
    for ask in (found.admit, lambda c: found.charge(c, "train", 1, 1)):
        with pytest.raises(PolicyRefusedError, match=r"\((mode|metrics)\)"):
            ask(settings(**dp))


CLIENT = {"unit": "client", "noise": "distributed"}
MODES: dict[str, tuple[dict[str, object], str]] = {
    "record/distributed": ({"noise": "distributed"}, "record"),
    "client/distributed": (CLIENT, "client"),
    "client/central": ({**CLIENT, "noise": "central"}, "client"),
}


def moded(mode: str, **dp: object) -> Config:
    training = {"local_steps": 1, "nominal_records": 100}
    return Config.model_validate(
        {
            "task": {"name": "digits"},
            "training": training,
            "dp": {"noise_multiplier": 2.0, **MODES[mode][0], **dp},
        }
    )


def allows(*modes: str, **rules: object) -> Policy:
    data = {"tasks": ["digits"], "epsilon": 7.125, "delta": DELTA, "modes": modes, **rules}
    return policy(datasets={"wards": data})


@pytest.mark.parametrize("mode", MODES)
def test_the_client_computes_its_own_charge_from_the_model_that_came(
    tmp_path: Path, mode: str
) -> None:
    asked = moded(mode)
    Guard(allows(mode), ledger_at(tmp_path), "1").charge(asked, "train", 1, 1, dimension=650)
    (entry,) = ledger_at(tmp_path).read().entries
    assert entry.unit == MODES[mode][1]
    (release,) = entry.releases
    assert release == training_release(asked, 2.0, 650)
    assert (release.integers is None) == (mode == "client/central")
    # Written and read again it is the same, to the last bit.
    assert spend(ledger_at(tmp_path).read().entries, "wards").releases == (release,)


@pytest.mark.parametrize("mode", MODES)
def test_before_the_model_is_known_only_what_is_spent_counts(tmp_path: Path, mode: str) -> None:
    found = Guard(allows(mode, epsilon=1e-3), ledger_at(tmp_path), "1")
    asked = moded(mode)
    if mode == "client/central":
        with pytest.raises(PolicyRefusedError, match="budget"):
            found.admit(asked)
    else:
        found.admit(asked)
    with pytest.raises(PolicyRefusedError, match="budget"):
        found.charge(asked, "train", 1, 1, dimension=650)
    assert ledger_at(tmp_path).read().entries == ()


def test_the_clip_norm_of_each_round_is_held_against_the_policy(tmp_path: Path) -> None:
    rules = allows("client/central", max_clip_norm=1.5)
    found = Guard(rules, ledger_at(tmp_path), "1")
    asked = moded("client/central", adaptive={})
    found.charge(asked, "train", 1, 1, dimension=650, clip_norm=1.5)
    with pytest.raises(PolicyRefusedError, match=r"\(clip norm\)"):
        found.charge(asked, "train", 2, 1, dimension=650, clip_norm=1.5001)


def test_no_epsilon_covers_releases_of_two_units(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Guard(allows("record/local"), ledger_at(tmp_path), "1").charge(settings(), "train", 1, 1)
    found = Guard(allows("client/central"), ledger_at(tmp_path), "2")
    with caplog.at_level(logging.WARNING), pytest.raises(PolicyRefusedError, match="budget"):
        found.charge(moded("client/central"), "train", 1, 1, dimension=650)
    assert "some releases protect a record and some a whole client" in caplog.text
    assert len(ledger_at(tmp_path).read().entries) == 1


def test_where_it_is_allowed_it_is_recorded_and_spoils_a_later_budget(tmp_path: Path) -> None:
    allowed = policy(datasets={"wards": {"tasks": ["digits"], "modes": ["none"]}})
    asked = settings(unit="none")
    Guard(allowed, ledger_at(tmp_path), "1").charge(asked, "train", 1, 1)
    (entry,) = ledger_at(tmp_path).read().entries
    assert entry.exact
    with pytest.raises(PolicyRefusedError, match="budget"):
        Guard(policy(), ledger_at(tmp_path), "2").charge(settings(), "train", 1, 1)


def test_the_owners_figures_stay_in_its_own_log_unless_it_says_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"wards": {"tasks": ["digits"], "epsilon": 0.125, "delta": DELTA}}
    for tell in (False, True):
        found = Guard(policy(datasets=small, tell_figures=tell), ledger_at(tmp_path), "1")
        with caplog.at_level(logging.WARNING), pytest.raises(PolicyRefusedError) as refused:
            found.charge(settings(), "train", 1, 1)
        cost = f"{pld_epsilon([ROUND], DELTA):.3f}"[:-1]
        for figure in ("0.125", cost, "wards"):
            assert (figure in str(refused.value)) == tell
            assert figure in caplog.text
        caplog.clear()


def test_a_ledger_that_cannot_be_used_closes_the_door_and_names_no_file_to_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = Guard(policy(tell_figures=True), ledger_at(tmp_path), "1")
    found.charge(settings(), "train", 1, 1)
    (tmp_path / "ledger.db").write_bytes(b"")
    for ask in (found.admit, lambda c: found.charge(c, "train", 1, 1)):
        with caplog.at_level(logging.ERROR), pytest.raises(PolicyRefusedError) as refused:
            ask(settings())
        assert refused.value.refusal.reason is Reason.LEDGER
        assert str(tmp_path) not in str(refused.value)
        assert str(tmp_path) in caplog.text


def test_the_least_cohort_and_the_roster_of_the_policy_hold_in_secure_aggregation(
    tmp_path: Path,
) -> None:
    me, you, third = (Identity.generate(name) for name in ("me", "you", "third"))
    roster = Roster({one.name: one.public_key for one in (me, you)})
    own = Credentials(me, roster, Floors(min_clients=3))
    named = {"you": show_public_key(you.public_key)}

    def strengthened(**rules: object) -> Credentials:
        return Guard(policy(**rules), ledger_at(tmp_path), "1").strengthen(own)

    assert strengthened().floors.min_clients == 3
    assert strengthened(min_cohort=7, roster=named).floors.min_clients == 7
    for wrong in ({}, {"you": show_public_key(third.public_key)}):
        with pytest.raises(PolicyRefusedError, match="roster"):
            strengthened(roster=wrong)


def write_policy(path: Path, text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        text
        or 'format = "fedveil-policy-1"\n[datasets.wards]\ntasks = ["digits"]\nepsilon = 7.125\n'
        "delta = 1e-5\n"
    )
    path.chmod(0o600)
    return path


def test_a_node_without_policy_and_ledger_has_no_guard() -> None:
    assert guard_of_node(node()) is None


def test_policy_and_ledger_lie_at_home_unless_named(tmp_path: Path) -> None:
    write_policy(default_policy_file())
    found = guard_of_node(node())
    assert found is not None
    found.charge(settings(), "train", 1, 1)
    assert default_ledger_file().exists()
    named = write_policy(tmp_path / "mine.toml")
    found = guard_of_node(node(policy=str(named), ledger=str(tmp_path / "mine.db")))
    assert found is not None
    found.charge(settings(), "train", 1, 1)
    assert (tmp_path / "mine.db").exists()


def test_a_policy_that_is_lost_does_not_open_the_door(tmp_path: Path) -> None:
    write_policy(default_policy_file())
    found = guard_of_node(node())
    assert found is not None
    found.charge(settings(), "train", 1, 1)
    default_policy_file().unlink()
    for context in (node(), node(policy=str(tmp_path / "gone.toml"))):
        with pytest.raises(PolicyRefusedError, match=r"\(policy file\)"):
            guard_of_node(context)
    default_ledger_file().unlink()
    with pytest.raises(PolicyRefusedError, match=r"\(policy file\)"):
        guard_of_node(node(ledger=str(tmp_path / "named.db")))


def test_a_policy_is_read_anew_for_every_message() -> None:
    path = write_policy(default_policy_file())
    assert guard_of_node(node()) is not None
    path.write_text(path.read_text().replace("7.125", "6"))
    found = guard_of_node(node())
    assert found is not None
    assert found.policy.datasets["wards"].epsilon == 6.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("format = ", "is not TOML"),
        ("\x00", "is not TOML"),
        ('format = "fedveil-policy-1"', "setting datasets is missing"),
        ('format = "x"\n[datasets.a]\ntasks = ["a"]\nepsilon = 1\ndelta = 1e-5', "format: input"),
        (
            'format = "fedveil-policy-1"\n[datasets.a]\ntasks = ["a"]\nepsilom = 1',
            "unknown setting datasets.a.epsilom; known here: tasks, modes, epsilon",
        ),
    ],
)
def test_a_malformed_policy_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = write_policy(tmp_path / "policy.toml", text)
    with pytest.raises(PolicyFileError, match=says) as refused:
        read_policy(path)
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(PolicyRefusedError) as told:
        guard_of_node(node(policy=str(path)))
    assert str(path) not in str(told.value)


def test_a_policy_that_others_could_have_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_policy(tmp_path / "policy.toml")
    path.chmod(0o664)
    with pytest.raises(PolicyFileError, match="mode 0664"):
        read_policy(path)
    path.chmod(0o644)
    assert read_policy(path).min_cohort == 2
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    with pytest.raises(PolicyFileError, match="symbolic link"):
        read_policy(link)
    os.chown(path, 12345, -1) if os.geteuid() == 0 else pytest.skip("only root gives files away")
    with pytest.raises(PolicyFileError, match="belongs to user 12345"):
        read_policy(path)


DEPLOYED = """
import sys
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from fedveil.client.app import app
from fedveil.client.shared_noise import training_release
from fedveil.config import Config
from fedveil.flower import set_identity
set_identity(1, 1)
config = Config.model_validate({"task": {"name": "digits"}, "dp": {"noise_multiplier": 2.0}})
asked = ConfigRecord({"config": config.model_dump_json(), "round": 1, "attempt": 1})
content = RecordDict({"config": asked, "arrays": ArrayRecord()})
node = {"policy": sys.argv[1], "secagg": "off", "partition-id": 0, "num-partitions": 10}
context = Context(1, 2, node, RecordDict(), {})
for kind in ("query", "train", "evaluate"):
    try:
        app(Message(content, dst_node_id=2, message_type=kind), context)
    except Exception as error:
        print(type(error).__name__, error)
print([m for m in ("torch", "scipy", "dp_accounting", "matplotlib") if m in sys.modules])
"""


def test_the_deployed_app_is_guarded_and_refuses_before_anything_heavy_is_loaded(
    tmp_path: Path,
) -> None:
    """Flower starts a process a message; most of them ask for no epsilon."""
    path = write_policy(tmp_path / "policy.toml")
    path.write_text(f"expires = 2001-01-01\nsecure_aggregation = false\n{path.read_text()}")
    done = subprocess.run(
        [sys.executable, "-c", DEPLOYED, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    *refused, loaded = done.stdout.splitlines()
    assert [line.split(":")[0] for line in refused] == [
        "PolicyRefusedError refused by the data owner's policy (expired)",
        "PolicyRefusedError refused by the data owner's policy (expired)",
        'RequestError dp.metrics = "off"',
    ], done.stdout
    assert loaded == "[]"

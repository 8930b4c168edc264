"""Three clients with TLS and keys: all together, then one whose policy refuses or budget ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from kits import Kits, kits
from waiting import DELTA, ledger_releases, ledger_rounds, run_folder, started_run

from fedveil.privacy.accounting import Release, pld_epsilon

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIENTS = ("ward-a", "ward-b", "ward-c")
SETTINGS = """\
federation.rounds = 5
[policy]
epsilon = 100.0
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kits]:
    with kits(tmp_path_factory.mktemp("three"), CLIENTS, SETTINGS) as made:
        made.start_all()
        yield made


def edit_policy(federation: Kits, name: str, line: str, instead: str) -> None:
    path = federation.kit(name) / "policy.toml"
    text, found = re.subn(rf"(?m)^{line}", instead, path.read_text())
    assert found == 1
    path.write_text(text)


def test_three_clients_train_five_rounds_and_every_ledger_agrees_with_the_report(
    federation: Kits,
) -> None:
    with started_run(federation) as run:
        assert run.ended() == 0, run.told()
    assert "warning" not in run.told()
    folder = run_folder(federation, run.path)
    assert folder.config.secagg.enabled
    assert folder.config.dp.mode == "record/local"
    assert [(r.round, r.clients, r.failed, r.attempt) for r in folder.records] == [
        (round_, 3, 0, 1) for round_ in range(1, 6)
    ]
    assert folder.records[-1].accuracy is not None
    assert folder.records[-1].accuracy > 0.7
    assert all(check.problem is None for check in folder.store.verify())
    federation.command("report", str(run.path), "--verify", party="coordinator")
    report = json.loads((run.path / "report.json").read_text())
    assert 0.0 < report["epsilon"] <= 8.0
    for name in CLIENTS:
        assert ledger_rounds(federation, name, run.number) == [1, 2, 3, 4, 5]
        spent = pld_epsilon(ledger_releases(federation, name, run.number), DELTA)
        assert spent == pytest.approx(report["epsilon"], abs=1e-6)


def test_a_client_whose_policy_refuses_is_named_and_the_others_finish(federation: Kits) -> None:
    edit_policy(federation, "ward-c", r'tasks = \["digits"\]', 'tasks = ["mnist"]')
    try:
        with started_run(federation, "--set", "federation.rounds=2") as run:
            assert run.ended() == 0, run.told()
    finally:
        edit_policy(federation, "ward-c", r'tasks = \["mnist"\]', 'tasks = ["digits"]')
    assert "is left out: refused by the data owner's policy (task)" in run.told()
    records = run_folder(federation, run.path).records
    assert [(record.clients, record.failed) for record in records] == [(2, 0), (2, 0)]
    assert [ledger_rounds(federation, name, run.number) for name in CLIENTS] == [[1, 2], [1, 2], []]


def test_a_client_whose_budget_ends_is_left_out_and_the_others_finish(federation: Kits) -> None:
    round_ = Release(0.25, 2.0, 2)
    spent = ledger_releases(federation, "ward-c")
    one, two = (pld_epsilon([*spent, *[round_] * more], DELTA) for more in (1, 2))
    edit_policy(federation, "ward-c", r"epsilon = 100\.0", f"epsilon = {(one + two) / 2!r}")
    options = [
        *("federation.rounds=3", "dp.noise_multiplier=2.0"),
        *("training.local_steps=2", "training.sampling_rate=0.25"),
    ]
    with started_run(federation, *[part for o in options for part in ("--set", o)]) as run:
        assert run.ended() == 0, run.told()
    for number in (2, 3):
        left_out = f"round {number}: client-2 is left out: refused by the data owner's policy"
        assert f"{left_out} (budget)" in run.told()
    records = run_folder(federation, run.path).records
    assert [(record.clients, record.failed) for record in records] == [(3, 0), (2, 1), (2, 1)]
    charged = [ledger_rounds(federation, name, run.number) for name in CLIENTS]
    assert charged == [[1, 2, 3], [1, 2, 3], [1]]
    assert set(ledger_releases(federation, "ward-c", run.number)) == {round_}
    # The owner's own log has the figures; the server's, and whoever submits the run, have not.
    assert "data set digits: the budget for all runs is epsilon" in federation.log("ward-c")
    assert "the budget for all runs" not in run.told() + federation.log("server")

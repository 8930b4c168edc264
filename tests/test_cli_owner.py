"""`fedveil policy` and `fedveil budget` as a data owner types them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import command
from ledgers import DELTA, train_charge

from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.privacy.ledger import Ledger
from fedveil.privacy.report_words import rounded_up


def fedveil(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"FEDVEIL_HOME": str(home), "COLUMNS": "200"}
    return command(*arguments, environment=environment, where=home)


def own_ledger(home: Path) -> Ledger:
    return Ledger(home / "ledger.db", home / "marks")


def test_a_policy_is_made_explained_and_tried(tmp_path: Path) -> None:
    made = fedveil(tmp_path, "policy", "init", "--task", "digits", "--epsilon", "8")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "policy.toml").stat().st_mode & 0o777 == 0o600
    accepted = fedveil(tmp_path, "policy", "check", "--scenario", "digits")
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    assert "epsilon at most 8 over all runs" in accepted.stdout
    assert accepted.stdout.splitlines()[-1].startswith("accepted: digits on data set digits: 20")
    own_ledger(tmp_path).charge(train_charge("digits"), None)
    refused = fedveil(
        tmp_path, "policy", "check", "policy.toml", "--scenario", "digits", "--ledger", "ledger.db"
    )
    assert refused.returncode == 1
    assert "refused: (budget) after 19 of 20 rounds" in refused.stdout
    assert not refused.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a data owner with a policy and two charges."""
    folder = tmp_path_factory.mktemp("owner")
    (folder / "policy.toml").write_text(
        'format = "fedveil-policy-1"\n[datasets.cardiology]\ntasks = ["digits"]\nepsilon = 4.0\n'
        f"delta = {DELTA!r}\n"
    )
    for round_ in (1, 2):
        own_ledger(folder).charge(train_charge("cardiology", "7", round_), None)
    return folder


def test_the_budget_is_shown_as_table_plot_and_json(home: Path, tmp_path: Path) -> None:
    shown = fedveil(home, "budget", "show", "--svg", str(tmp_path / "spent.svg"))
    assert shown.returncode == 0, shown.stderr
    for word in ("cardiology", "of", "1e-05", "7", "digits", "█"):
        assert word in shown.stdout
    assert (tmp_path / "spent.svg").read_text().startswith("<svg")
    view = json.loads(fedveil(home, "budget", "show", "--json").stdout)
    (cardiology,) = view["datasets"]
    assert cardiology["budget"] == 4.0
    assert rounded_up(cardiology["epsilon"]) in shown.stdout


def test_verify_prints_a_head_that_later_shows_what_was_put_back(
    home: Path, tmp_path: Path
) -> None:
    """Also where ledger and head were put back together, as an image of a machine does."""
    machine = tmp_path / "machine"
    shutil.copytree(home, machine)
    # The place where it lies is what its head is kept under.
    own_ledger(machine).charge(train_charge("cardiology", "7", 3), None)
    done = fedveil(machine, "budget", "verify")
    assert done.returncode == 0, done.stderr
    assert "3 entries, the chain is whole and reaches the head that was seen here" in done.stdout
    head = done.stdout.split()[-1]
    told = json.loads(fedveil(machine, "budget", "verify", "--head", head, "--json").stdout)
    assert (told["entries"], told["head"], told["was_known"]) == (3, head, True)
    shutil.rmtree(machine)
    shutil.copytree(home, machine)
    later = fedveil(machine, "budget", "verify", "--head", head)
    assert later.returncode == 1
    assert "an older or another ledger was put in its place" in later.stderr


def test_an_export_can_be_checked_as_the_documentation_says(home: Path, tmp_path: Path) -> None:
    exported = fedveil(home, "budget", "export").stdout
    page = (Path(__file__).resolve().parents[1] / "docs" / "policy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)

    def checked(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "ledger.json").write_text(text)
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    right = checked(exported)
    expected = pld_epsilon([Release(0.25, 2.0, 8)], DELTA)
    assert float(right.stdout) == pytest.approx(expected, abs=1e-6), right.stderr
    lighter = checked(exported.replace('\\"count\\":4', '\\"count\\":1', 1))
    assert "AssertionError" in lighter.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["policy", "check", "nowhere.toml"], "there is no policy at nowhere.toml"),
        (["policy", "check", "--set", "seed=1"], "name one with --scenario"),
        (["policy", "init", "--task", "a", "--epsilon", "500"], "less than or equal to 100"),
        (["policy", "init", "--task", "a", "--epsilon", "5"], "exists already"),
        (["budget", "show", "nowhere.db"], "there is no ledger at nowhere.db"),
        (["budget", "verify", "policy.toml"], "mode 0644|is no ledger|cannot be used"),
        (["budget", "verify", "--head", "3"], "NUMBER:HASH"),
        (["budget", "verify", "--head", "9:00"], "is not in its chain of 2 entries"),
    ],
)
def test_a_mistake_is_one_line(home: Path, arguments: list[str], says: str) -> None:
    done = fedveil(home, *arguments)
    assert done.returncode == 1
    assert any(part in done.stderr for part in says.split("|")), done.stderr
    assert len(done.stderr.splitlines()) == 1

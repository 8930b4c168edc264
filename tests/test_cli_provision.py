"""`fedveil provision` and `fedveil kit`, as a person types them."""

from __future__ import annotations

from pathlib import Path

import pytest
from provisioned import FEDERATION, PREDICTOR, contents
from typer.testing import CliRunner

from fedveil.cli import app
from fedveil.errors import FedveilError
from fedveil.server.policy_preview import preview
from fedveil.simulations.scenarios import find_scenario

runner = CliRunner()


def run(*arguments: str | Path) -> tuple[int, str]:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, FedveilError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "federation.toml"
    path.write_text(FEDERATION)
    return path


def test_it_says_what_it_made_and_where_the_authority_s_key_stays(file: Path) -> None:
    code, said = run("provision", file)
    assert code == 0
    assert "made kits/ward-b, for ward-b alone" in said
    assert "keys are in kits/ca: whoever has them can add clients; keep that folder" in said
    code, said = run("provision", file)
    assert "nothing has changed" in said


def test_it_says_which_files_changed_for_whom(file: Path) -> None:
    run("provision", file)
    file.write_text(FEDERATION.replace("[clients.ward-b]\n", "") + "[clients.ward-d]\n" + PREDICTOR)
    with pytest.raises(FedveilError, match="--revoke ward-b"):
        run("provision", file)
    _, said = run("provision", file, "--revoke", "ward-b")
    lines = said.splitlines()
    assert "changed for ward-a, in kits/ward-a: roster.toml; hand that to ward-a" in lines
    assert "revoked ward-b; its kit is now kits/revoked/ward-b" in lines
    assert "made kits/ward-d, for ward-d alone" in lines
    (coordinator,) = [line for line in lines if line.startswith("changed for coordinator")]
    assert coordinator.endswith("no longer there: supernodes/ward-b.pub")
    assert "keys/predictor.key" in coordinator
    assert "roster: version 2, 3 clients." in said


def test_the_run_follows_from_scenario_and_settings(file: Path) -> None:
    file.write_text(
        FEDERATION + '[run]\nscenario = "breast-cancer"\n[run.settings]\n'
        "dp.target_epsilon = 3.0\nfederation.rounds = 7\n"
    )
    run("provision", file)
    app_settings = Path("kits/coordinator/app/pyproject.toml").read_text()
    assert 'name = "breast-cancer"' in app_settings
    assert "rounds = 7" in app_settings
    assert "clients = 3" in app_settings
    assert "epsilon = 3.0" in Path("kits/ward-a/policy.toml").read_text()


def test_the_first_policy_bears_the_federation_s_own_run(file: Path) -> None:
    from fedveil.client.policy_file import read_policy
    from fedveil.privacy.ledger import Snapshot

    run("provision", file)
    config = find_scenario("digits").config([("federation.clients", 3)])
    outlook = preview(read_policy(Path("kits/ward-a/policy.toml")), config, Snapshot())
    assert not outlook.refused


def test_a_scenario_s_file_is_found_from_the_federation_s(tmp_path: Path, file: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "own.toml").write_text(find_scenario("digits").config().to_toml())
    (folder / "federation.toml").write_text(FEDERATION + '[run]\nscenario = "own.toml"\n')
    code, _ = run("provision", folder / "federation.toml")
    assert code == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (FEDERATION + '[run]\nscenario = "digitz"\n', "there is no scenario"),
        (FEDERATION + "[run.settings]\ndp.epsilom = 1\n", "unknown setting dp.epsilom"),
        (FEDERATION + "[clients.'a b']\n", "clients"),
        (FEDERATION + "]", "is not TOML"),
        (
            FEDERATION + '[run.settings]\ndp.unit = "none"\ntraining.sampling = "shuffle"\n'
            "dp.noise_multiplier = 1.0\n",
            "give policy.epsilon",
        ),
    ],
)
def test_a_mistake_in_the_file_is_one_line_and_nothing_is_made(
    file: Path, text: str, complaint: str
) -> None:
    file.write_text(text)
    with pytest.raises(FedveilError, match=complaint) as caught:
        run("provision", file)
    assert "\n" not in str(caught.value)
    assert not Path("kits/ca").exists()


def test_a_missing_file_is_said(file: Path) -> None:
    with pytest.raises(FedveilError, match=r"nowhere\.toml: cannot be read"):
        run("provision", "nowhere.toml")


def test_kit_check_ends_with_1_when_anything_is_wrong(file: Path) -> None:
    run("provision", file)
    code, said = run("kit", "check", "kits/ward-a")
    assert (code, said) == (0, "kits/ward-a: the kit of ward-a (client of wards) can be used\n")
    Path("kits/ward-a/supernode.key").chmod(0o644)
    code, said = run("kit", "check", "kits/ward-a")
    assert code == 1
    assert all("kits/ward-a/supernode.key" in line for line in said.splitlines())
    with pytest.raises(FedveilError, match="is no kit"):
        run("kit", "check", "kits")


def test_a_moved_kit_is_settled(file: Path, tmp_path: Path) -> None:
    run("provision", file)
    Path("kits/coordinator").rename("server")
    code, said = run("kit", "check", "server")
    assert code == 0
    assert "note: server/flwr/config.toml: names other paths" in said
    _, said = run("kit", "settle", "server")
    assert "wrote server/flwr/config.toml" in said
    assert str(tmp_path / "server" / "ca.pem") in Path("server/flwr/config.toml").read_text()
    assert run("kit", "settle", "server") == (0, "")


def test_the_node_configuration_is_one_line(file: Path, tmp_path: Path) -> None:
    run("provision", file)
    _, said = run("kit", "node-config", "kits/ward-c")
    assert said.count("\n") == 1
    assert said.startswith("partition-id=2 num-partitions=3 ")
    assert f'policy="{tmp_path}/kits/ward-c/policy.toml"' in said
    with pytest.raises(FedveilError, match="the one of a client"):
        run("kit", "node-config", "kits/coordinator")


def test_renewing_is_told(file: Path) -> None:
    run("provision", file)
    before = contents(Path("kits"))
    _, said = run("provision", file, "--renew", "coordinator")
    assert "changed for coordinator, in kits/coordinator: server.pem" in said
    after = contents(Path("kits"))
    assert {path for path in after if after[path] != before[path]} == {"coordinator/server.pem"}

"""The app directory of a federation tells how clients get in, as its settings ask for it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedveil.server.new_app import write_app
from fedveil.simulations.scenarios import find_scenario


@pytest.mark.parametrize("is_secure", [True, False])
def test_the_nodes_are_started_as_the_settings_ask(tmp_path: Path, is_secure: bool) -> None:
    settings = [("secagg.enabled", is_secure), ("federation.clients", 4)]
    write_app(tmp_path / "app", find_scenario("digits").config(settings))
    text = (tmp_path / "app" / "README.md").read_text()
    assert ("keys new-identity" in text) == is_secure
    assert ("client-2/roster.toml" in text) == is_secure
    assert ('secagg="off"' in text) != is_secure
    project = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())
    config = project["tool"]["flwr"]["app"]["config"]
    assert config["secagg"]["enabled"] is is_secure
    assert config["run"]["roster"] == ""
    assert not list((tmp_path / "app").rglob("*.py"))

"""Flower's command line through one process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedveil.server.flower_cli import FlowerCli, FlowerCliError


def environment(home: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLWR_")},
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "NO_PROXY": "127.0.0.1",
    }


def test_what_flower_refuses_is_said_in_its_words_and_the_next_question_is_heard(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.toml").write_text(
        '[superlink.nobody]\naddress = "127.0.0.1:9"\ninsecure = true\n'
    )
    with FlowerCli(environment(tmp_path)) as flower:
        for _ in range(2):
            with pytest.raises(FlowerCliError, match="flwr list: Connection to the SuperLink"):
                flower.ask("list", "nobody")
        with pytest.raises(FlowerCliError, match="flwr supernode: "):
            flower.ask("supernode", "no-such-command")


def test_a_process_that_ends_instead_of_answering_is_told(tmp_path: Path) -> None:
    broken = environment(tmp_path) | {"PYTHONHOME": str(tmp_path)}
    with FlowerCli(broken) as flower, pytest.raises(FlowerCliError, match="flwr list: "):
        flower.ask("list", "nobody")

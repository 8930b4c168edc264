"""The room stands as the table in its `__init__` says: imports run upwards in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import fedveil.server.inference as room

FOLDER = Path(room.__file__).parent
PREFIX = "fedveil.server.inference."


def test_imports_run_one_way_in_the_table() -> None:
    table = re.findall(r"^`(\w+)`", room.__doc__ or "", re.M)
    assert sorted(table) == sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")
    for number, name in enumerate(table):
        tree = ast.parse((FOLDER / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PREFIX):
                assert (node.module or "").removeprefix(PREFIX) in table[:number], name

"""The house stands as CONTRIBUTING.md draws it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fedveil"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if not p.name.endswith("_pb2.py"))

# What a room may import of Fedveil, beside itself.
GROUND = {"errors"}
LEAVES = {
    *("errors", "settings", "config", "home", "flower", "envelope", "rosters", "hygiene"),
    *("children", "logs", "audit_log"),
}
ROOMS = {
    "tasks": GROUND,
    "privacy": GROUND,
    "secagg": GROUND,
    "vault": GROUND,
    "client": LEAVES | {"tasks", "privacy", "secagg", "vault"},
    "strategies": LEAVES | {"tasks", "privacy", "secagg", "vault"},
    "server": LEAVES | {"tasks", "privacy", "secagg", "vault", "client", "strategies"},
    "simulations": LEAVES
    | {"tasks", "privacy", "secagg", "vault", "client", "strategies", "server"},
    "errors": set(),
    "settings": GROUND,
    "config": GROUND | {"settings"},
    "home": GROUND,
    "hygiene": GROUND,
    "children": GROUND,
    "logs": GROUND,
    "audit_log": GROUND | {"home", "vault"},
    "flower": GROUND,
    "envelope": GROUND | {"secagg"},
    "rosters": GROUND | {"home", "settings", "secagg", "vault"},
}


def fedveil_imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {n.split(".")[1] for n in names if n.startswith("fedveil.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in ROOMS:
        assert fedveil_imports(path) <= ROOMS[room] | {room}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_says_its_purpose_and_what_it_offers(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no docstring"
    if path.name != "__init__.py":
        targets = [t for n in tree.body if isinstance(n, ast.Assign) for t in n.targets]
        names = [t.id for t in targets if isinstance(t, ast.Name)]
        assert "__all__" in names


def test_flowers_inside_is_touched_in_one_module_for_messages_and_one_for_nodes() -> None:
    private = ("flwr.supercore", "flwr.superlink", "flwr.supernode", "flwr.proto", "flwr.common")
    touching = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(private)
    }
    assert touching == {"flower.py", "client/flower_runtime.py"}


@pytest.mark.parametrize(
    "module",
    [
        "fedveil.client.app",
        "fedveil.client.runner.worker",
        "fedveil.server.app",
        "fedveil.cli",
        "fedveil.tasks.registry",
    ],
)
def test_importing_an_app_loads_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print([m for m in ('torch', 'opacus', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


def test_provisioning_knows_no_flower() -> None:
    modules = sorted((PACKAGE / "server" / "provisioning").glob("*.py"))
    assert modules
    touching = [
        path.name
        for path in modules
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        if name.split(".")[0] == "flwr"
    ]
    assert touching == []


@pytest.mark.parametrize("name", ["server", "client", "strategies", "simulations"])
def test_the_four_rooms_are_linked_at_the_top(name: str) -> None:
    assert (ROOT / name).is_symlink()
    assert (ROOT / name).resolve() == PACKAGE / name


def test_the_documentation_names_every_setting() -> None:
    from pydantic import BaseModel

    from fedveil.config import Config

    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for name, field in Config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for key in kind.model_fields:
                assert f"`{name}.{key}`" in text, f"{name}.{key}"
        else:
            assert f"`{name}`" in text, name


def test_the_repository_holds_no_path_of_a_machine() -> None:
    for path in [*MODULES, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "Makefile"]:
        text = path.read_text(encoding="utf-8")
        for foreign in ("/work/", "/root/", "/home/"):
            assert foreign not in text, path

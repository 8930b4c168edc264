import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fedveil.vault
import fedveil.vault.kek

ROOM = Path(fedveil.vault.__file__).parent


def test_the_room_needs_neither_flower_nor_torch() -> None:
    program = (
        "import sys, fedveil.vault; "
        "assert not {'numpy', 'cryptography'} & set(sys.modules), 'the package imports'; "
        "import fedveil.vault.export; "
        "heavy = {'torch', 'flwr', 'opacus', 'safetensors', 'sklearn'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def table_of(package: ModuleType) -> list[str]:
    lines = (package.__doc__ or "").splitlines()
    return [line.split("`")[1] for line in lines if line.startswith("`")]


def imported(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    names = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name for name in names if name.startswith("fedveil.")} - {"fedveil.errors"}


def test_imports_follow_the_table_of_the_room() -> None:
    order = table_of(fedveil.vault)
    modules = {path.stem for path in ROOM.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in ROOM.glob("*/__init__.py")}
    assert set(order) == modules | packages
    for name in modules | packages:
        files = [ROOM / f"{name}.py"] if name in modules else (ROOM / name).glob("*.py")
        used = {used.split(".")[2] for path in files for used in imported(path)} - {name}
        assert all(order.index(each) < order.index(name) for each in used), f"{name}: {used}"


def test_imports_follow_the_table_of_the_kek_providers() -> None:
    order = table_of(fedveil.vault.kek)
    modules = {path.stem for path in (ROOM / "kek").glob("*.py")} - {"__init__"}
    assert set(order) == modules
    front = "fedveil.vault.kek."
    for name in modules:
        names = imported(ROOM / "kek" / f"{name}.py")
        used = {each.removeprefix(front) for each in names if each.startswith(front)}
        assert all(order.index(each) < order.index(name) for each in used), f"{name}: {used}"

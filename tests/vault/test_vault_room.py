import ast
import subprocess
import sys
from pathlib import Path

import fedveil.vault

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


def test_imports_follow_the_table_of_the_room() -> None:
    table = [line for line in (fedveil.vault.__doc__ or "").splitlines() if line.startswith("`")]
    order = [line.split("`")[1] for line in table]
    modules = {path.stem for path in ROOM.glob("*.py")} - {"__init__"}
    assert set(order) == modules
    for name in modules:
        for node in ast.walk(ast.parse((ROOM / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fedveil."):
                used = str(node.module).removeprefix("fedveil.vault.")
                if used == "fedveil.errors":
                    continue
                assert order.index(used) < order.index(name), f"{name} imports {used}"

"""The process that is the `flower-superlink`: Flower's own, without core dumps, and never alone."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

from fedveil.children import die_with_parent
from fedveil.hygiene import forbid_core_dumps

__all__ = ["main"]

_SCRIPT = "flower-superlink"


def main(arguments: list[str]) -> None:
    """Be a SuperLink until told to stop, or until the process `arguments[0]` is gone."""
    parent, *rest = arguments
    die_with_parent(int(parent))
    forbid_core_dumps()
    (script,) = entry_points(group="console_scripts", name=_SCRIPT)
    sys.argv = [_SCRIPT, *rest]
    script.load()()


if __name__ == "__main__":
    main(sys.argv[1:])

"""The process that is the `flower-supernode`: Flower's own, without core dumps, and never alone."""

from __future__ import annotations

import sys

from fedveil.children import die_with_parent
from fedveil.client.flower_runtime import run_supernode
from fedveil.hygiene import forbid_core_dumps

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Be a SuperNode until told to stop, or until the process `arguments[0]` is gone."""
    parent, *rest = arguments
    die_with_parent(int(parent))
    forbid_core_dumps()
    run_supernode(rest)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The process that is the `flower-supernode`: Flower's own, without core dumps, and never alone."""

from __future__ import annotations

import os
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
    # Told to stop, it raises SystemExit. It returns where Flower's loop gave the connection up, and
    # a thread that serves the runner would keep the process: alive, and deaf.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])

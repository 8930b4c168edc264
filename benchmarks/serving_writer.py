"""Commits rounds to a run, one for each line of standard input, as a training run would."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fedveil.server.records import RoundRecord
from fedveil.server.run_folder import RunFolder


def _main() -> None:
    # It shares its processor with the load generator, whose times are what is measured.
    os.nice(19)
    folder = RunFolder.open(Path(sys.argv[1]), writing=True)
    weights = folder.store.latest().tensors
    for _ in sys.stdin:
        round_ = folder.committed + 1
        record = RoundRecord(
            round=round_,
            attempt=1,
            clients=10,
            failed=0,
            seconds=1.0,
            epsilon=1.0,
            test={"accuracy": 0.5},
        )
        folder.commit(record, weights, {})
        print(round_, flush=True)


if __name__ == "__main__":
    _main()

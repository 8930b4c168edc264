"""The `fedveil` command in this process: what it prints and how it ends, without a start's seconds.

What only a process of its own shows (signals, kills, what an import prints) is tested with one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from own_logging import own_logging

from fedveil.cli import main


def command(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    where: Path | None = None,
    answer: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run `fedveil` as it is typed; what ends a process with a traceback is raised.

    The environment is this process's, with the given variables added.
    """
    told, said = BytesIO(), BytesIO()
    out, err = (TextIOWrapper(stream, "utf-8", write_through=True) for stream in (told, said))
    with pytest.MonkeyPatch.context() as patch, own_logging():
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        if where is not None:
            patch.chdir(where)
        patch.setattr(sys, "argv", ["fedveil", *arguments])
        patch.setattr(sys, "stdin", TextIOWrapper(BytesIO(answer.encode()), "utf-8"))
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return subprocess.CompletedProcess(
        list(arguments), code or 0, told.getvalue().decode(), said.getvalue().decode()
    )

"""Runs at the start of every watched Python process: keeps what it would delete or overwrite.

Each path that is opened for writing goes into a list. A file that is about to be deleted or
replaced gets a second name in the watch folder, and one that is about to be emptied is copied
there, so that what was on the disk for a moment only can be searched too. What native code opens
by itself is not seen.
"""

import os
import shutil
import sys
import uuid
from pathlib import Path

_folder = os.environ["FEDVEIL_DISK_WATCH"]
_log = os.open(f"{_folder}/opened-{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
_WRITES = os.O_WRONLY | os.O_RDWR
_NAMELESS = getattr(os, "O_TMPFILE", 0)


def _note(path: object, unsearched: bool = False) -> None:
    # A file that leaves nothing to search is marked, so that a test can refuse it.
    os.write(_log, f"{'?' if unsearched else ''}{path}\n".encode())


def _fresh() -> str:
    return f"{_folder}/kept-{uuid.uuid4().hex}"


def _keep(path: str | bytes | os.PathLike[str], directory: int = -1) -> None:
    try:
        os.link(path, _fresh(), src_dir_fd=directory if directory >= 0 else None)
    except FileNotFoundError:
        return
    except OSError:
        _note(path, unsearched=True)


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    match event, arguments:
        case "open", (str() | bytes() | os.PathLike() as path, _, int(flags)) if flags & _WRITES:
            file = Path(os.fsdecode(path)).absolute()
            if str(file).startswith((_folder, os.devnull)):
                return
            _note(file, unsearched=_NAMELESS != 0 and flags & _NAMELESS == _NAMELESS)
            if flags & os.O_TRUNC and file.is_file():
                shutil.copyfile(file, _fresh())
        case "sqlite3.connect", (database,):
            _note(database)
        case "os.remove", (str() | bytes() | os.PathLike() as path, int(directory)):
            _keep(path, directory)
        case "os.rename", (_, str() | bytes() | os.PathLike() as path, _, int(directory)):
            _keep(path, directory)


sys.addaudithook(_watch)

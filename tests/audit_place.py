"""An audit log and its head, to write into and to tamper with."""

from __future__ import annotations

from pathlib import Path

from fedveil.audit_log.chain import ChainFile, head_path


class Place:
    """A log and its head, in two folders."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "audit.log"
        self.head = head_path(folder / "heads", self.log)
        self.chain = ChainFile(self.log, self.head)

    def write(self, *numbers: int) -> str:
        return self.chain.append([{"event": "x", "value": number} for number in numbers]).sha256

    def lines(self) -> list[bytes]:
        return self.log.read_bytes().splitlines(keepends=True)

    def put(self, lines: list[bytes]) -> None:
        self.log.write_bytes(b"".join(lines))

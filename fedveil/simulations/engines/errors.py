"""What is wrong with the choice of an engine, or with an engine."""

from __future__ import annotations

from fedveil.errors import FedveilError

__all__ = ["ClientDefectError", "EngineError"]


class EngineError(FedveilError):
    """An engine that does not exist, does not fit the settings, or has broken."""


class ClientDefectError(Exception):
    """A defect in a client that ran in another process, whose traceback there it tells."""

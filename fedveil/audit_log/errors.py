"""What is said where an audit log cannot be written, or does not verify."""

from __future__ import annotations

from fedveil.errors import FedveilError

__all__ = ["AuditError"]


class AuditError(FedveilError):
    """The audit log cannot be written, or does not verify."""

"""What can be wrong with a federation's file, its authority or a kit."""

from __future__ import annotations

from fedveil.errors import FedveilError

__all__ = ["KitError", "ProvisionError"]


class ProvisionError(FedveilError):
    """Kits cannot be made or changed as asked; nothing was lost."""


class KitError(FedveilError):
    """A folder is no kit, or not the kit of the party that was asked for."""

"""The one error of this room, kept free of torch so that any module may raise it."""

from fedveil.errors import FedveilError

__all__ = ["TaskError"]


class TaskError(FedveilError):
    """A task cannot be built, or its data cannot be had, divided or used."""

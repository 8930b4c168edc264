"""What the Skellam mechanism refuses."""

from fedveil.errors import FedveilError, PublicError

__all__ = ["SkellamError", "VectorError"]


class SkellamError(PublicError):
    """Public constants of a sum contradict each other, or what they ask for does not fit."""


class VectorError(FedveilError):
    """A vector is not what the mechanism was made for; the message may speak of private data."""

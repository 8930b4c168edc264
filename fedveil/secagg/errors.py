"""The errors of secure aggregation, each one line for a person."""

from __future__ import annotations

from fedveil.errors import FedveilError

__all__ = [
    "BelowThresholdError",
    "EncodingError",
    "FloorError",
    "ImpossibleSumError",
    "ProtocolError",
    "RosterError",
    "SecAggError",
    "ShareError",
    "UnknownSessionError",
    "WireError",
]


class SecAggError(FedveilError):
    """A secure aggregation cannot go on, or must not."""


class WireError(SecAggError):
    """Bytes that are not the canonical encoding of the expected message."""


class RosterError(SecAggError):
    """An identity or a roster cannot be used, or a client is not in it.

    Parameters
    ----------
    message : str
        The one line.
    member : str
        Name of the client that it is about, if it is about one.
    """

    def __init__(self, message: str, member: str = "") -> None:
        super().__init__(message)
        self.member = member


class ProtocolError(SecAggError):
    """A message that an honest party would not have sent, or not now."""


class FloorError(SecAggError):
    """The server asks for less protection than this client insists on."""


class UnknownSessionError(SecAggError):
    """A message about a set-up that this client does not know, or no longer."""


class EncodingError(SecAggError):
    """An update, a weight or a figure that cannot be put into the ring.

    The message never tells its value: it goes to the server.
    """


class ShareError(SecAggError):
    """Shares that do not give the secret that they were made of."""


class BelowThresholdError(SecAggError):
    """Too few clients are left; nothing was unmasked, and the round can be tried again."""


class ImpossibleSumError(SecAggError):
    """The unmasked sum is one that honest clients cannot produce."""

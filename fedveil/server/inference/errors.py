"""The errors of the inference service, each one line for whoever sent the request."""

from __future__ import annotations

from typing import ClassVar

from fedveil.errors import FedveilError

__all__ = [
    "DeadlineError",
    "ForbiddenError",
    "InvalidRequestError",
    "NotFoundError",
    "OutputError",
    "OverloadedError",
    "RequestError",
    "RoundRefusedError",
    "ServeError",
    "TokenError",
    "TooLargeError",
    "UnauthenticatedError",
    "UnavailableError",
]


class ServeError(FedveilError):
    """The service cannot be started as asked."""


class TokenError(FedveilError):
    """The file of access tokens cannot be used, or a token cannot be made or revoked."""


class RoundRefusedError(FedveilError):
    """A round that opened is still not fit to be served."""


class RequestError(FedveilError):
    """A request is answered with an error and nothing else happens.

    Attributes
    ----------
    http : int
        Status of the answer over HTTP.
    grpc : str
        Name of the status over gRPC.
    """

    http: ClassVar[int] = 500
    grpc: ClassVar[str] = "INTERNAL"


class InvalidRequestError(RequestError):
    """The request is malformed, or does not fit the model."""

    http: ClassVar[int] = 400
    grpc: ClassVar[str] = "INVALID_ARGUMENT"


class TooLargeError(RequestError):
    """The request is over a limit of the service."""

    http: ClassVar[int] = 413
    grpc: ClassVar[str] = "INVALID_ARGUMENT"


class UnauthenticatedError(RequestError):
    """There is no token, or one that is not known."""

    http: ClassVar[int] = 401
    grpc: ClassVar[str] = "UNAUTHENTICATED"


class ForbiddenError(RequestError):
    """The token is known, but not for this."""

    http: ClassVar[int] = 403
    grpc: ClassVar[str] = "PERMISSION_DENIED"


class NotFoundError(RequestError):
    """There is no such model, version or address."""

    http: ClassVar[int] = 404
    grpc: ClassVar[str] = "NOT_FOUND"


class OverloadedError(RequestError):
    """The queue is full: the request was not taken, and may be sent again later."""

    http: ClassVar[int] = 503
    grpc: ClassVar[str] = "RESOURCE_EXHAUSTED"


class UnavailableError(RequestError):
    """The service is ending and takes no more requests."""

    http: ClassVar[int] = 503
    grpc: ClassVar[str] = "UNAVAILABLE"


class DeadlineError(RequestError):
    """The answer was not ready in time."""

    http: ClassVar[int] = 504
    grpc: ClassVar[str] = "DEADLINE_EXCEEDED"


class OutputError(RequestError):
    """The model did not give an answer that can be sent."""

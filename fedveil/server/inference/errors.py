"""The errors of the inference service, each one line for whoever sent the request."""

from __future__ import annotations

from typing import ClassVar

from fedveil.errors import FedveilError

__all__ = [
    "BudgetError",
    "DeadlineError",
    "ForbiddenError",
    "InvalidRequestError",
    "MethodError",
    "MisdirectedError",
    "NotAcceptableError",
    "NotFoundError",
    "OutputError",
    "OverloadedError",
    "RateError",
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
    retry_after : float or None
        Seconds after which the same request may be taken; None where waiting does not help.
    """

    http: ClassVar[int] = 500
    grpc: ClassVar[str] = "INTERNAL"
    retry_after: float | None = None

    @property
    def outcome(self) -> str:
        """What figures and the audit log call it: the name of its type, in small letters."""
        return type(self).__name__.removesuffix("Error").lstrip("_").lower()


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


class MethodError(RequestError):
    """The address is not asked in this way.

    Parameters
    ----------
    method : str
        How it was asked.
    allowed : str
        How it is asked.
    """

    http: ClassVar[int] = 405
    grpc: ClassVar[str] = "UNIMPLEMENTED"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"{method} is not taken here; use {allowed}")
        self.allowed = allowed


class NotFoundError(RequestError):
    """There is no such model, version or address."""

    http: ClassVar[int] = 404
    grpc: ClassVar[str] = "NOT_FOUND"


class MisdirectedError(RequestError):
    """The request is for another host than this service (RFC 9110, section 15.5.20)."""

    http: ClassVar[int] = 421
    grpc: ClassVar[str] = "FAILED_PRECONDITION"


class OverloadedError(RequestError):
    """The queue is full: the request was not taken, and may be sent again later."""

    http: ClassVar[int] = 503
    grpc: ClassVar[str] = "RESOURCE_EXHAUSTED"
    retry_after: float | None = 1.0


class RateError(RequestError):
    """The caller asks too fast.

    Parameters
    ----------
    message : str
        One line.
    retry_after : float
        Seconds after which a request is taken again.
    """

    http: ClassVar[int] = 429
    grpc: ClassVar[str] = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BudgetError(RequestError):
    """The caller has asked for all the rows that were granted."""

    http: ClassVar[int] = 429
    grpc: ClassVar[str] = "RESOURCE_EXHAUSTED"


class UnavailableError(RequestError):
    """The service is ending and takes no more requests."""

    http: ClassVar[int] = 503
    grpc: ClassVar[str] = "UNAVAILABLE"


class DeadlineError(RequestError):
    """The answer was not ready in time."""

    http: ClassVar[int] = 504
    grpc: ClassVar[str] = "DEADLINE_EXCEEDED"


class NotAcceptableError(RequestError):
    """The answer cannot be had in the form that is asked for (RFC 9110, section 15.5.7)."""

    http: ClassVar[int] = 406
    grpc: ClassVar[str] = "INVALID_ARGUMENT"


class OutputError(RequestError):
    """The model did not give an answer that can be sent."""

"""The one base of every error that a user can cause or repair."""

__all__ = ["FedveilError", "PublicError"]


class FedveilError(Exception):
    """An error whose message is one line that says what is wrong, where, and what to do.

    The command line prints the message alone and exits non-zero; anything that is not a
    `FedveilError` is a defect of Fedveil and keeps its traceback.
    """


class PublicError(FedveilError):
    """An error whose message says nothing of a client's records: it may leave the client."""

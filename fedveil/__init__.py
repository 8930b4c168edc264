"""Fedveil: federated learning in which every privacy claim can be checked."""

from importlib.metadata import version

__version__ = version("fedveil")

__all__ = ["__version__"]

"""What Triton's extensions tell of the service: its index, configuration and statistics.

Source: triton-inference-server/server, ``docs/protocol``: ``extension_model_repository.md``,
``extension_model_configuration.md`` and ``extension_statistics.md``. Each is given as the JSON of
its HTTP form, whose names are those of the gRPC messages too. Models cannot be loaded or unloaded
by a request, so that "model_repository" is not among the extensions.
"""

from __future__ import annotations

from fedveil.server.inference.errors import InvalidRequestError
from fedveil.server.inference.oip import TensorSpec
from fedveil.server.inference.service import InferenceService

__all__ = ["EXTENSIONS", "model_config", "model_statistics", "repository_index"]

EXTENSIONS = ("model_configuration", "statistics")


def repository_index(service: InferenceService, ready: object) -> list[dict[str, str]]:
    """Return the rounds that are in memory, and whether they take requests.

    Parameters
    ----------
    service : InferenceService
        What is described.
    ready : object
        From the request: True for rounds that take requests alone.

    Raises
    ------
    InvalidRequestError
        If it is neither true nor false.
    """
    if not isinstance(ready, bool):
        raise InvalidRequestError("ready must be true or false")
    if not service.is_ready:
        state = {"state": "UNAVAILABLE", "reason": "the service is ending"}
    else:
        state = {"state": "READY", "reason": ""}
    return [
        {"name": service.name, "version": kept.version, **state}
        for kept in service.holder.kept
        if service.is_ready or not ready
    ]


def model_config(service: InferenceService, model: str, version: str) -> dict[str, object]:
    """Return how the model is run; all rounds are run alike.

    Errors are those of `InferenceService.find`.
    """
    found = service.metadata(model, version)
    gpus = [device.index or 0 for device in service.engine.devices if device.type == "cuda"]
    group: dict[str, object] = (
        {"count": 1, "gpus": gpus, "kind": "KIND_GPU"}
        if gpus
        else {"count": len(service.engine.devices), "kind": "KIND_CPU"}
    )
    return {
        "name": found.name,
        "platform": found.platform,
        "version_policy": {"specific": {"versions": [int(kept) for kept in found.versions]}},
        "max_batch_size": service.limits.rows,
        "input": [_tensor(found.input)],
        "output": [_tensor(found.output)],
        "instance_group": [group],
        # A request never waits for others to come.
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
    }


def model_statistics(
    service: InferenceService, model: str = "", version: str = ""
) -> dict[str, object]:
    """Return what rounds have computed and answered since the service started.

    Parameters
    ----------
    service : InferenceService
        What is described.
    model, version : str
        Which round; without a version all that are in memory. Without a model there is one.

    Raises
    ------
    NotFoundError
        If there is no such model, or the round is not in memory.
    """
    name = model or service.name
    found = service.find(name, version)
    versions = [found.version] if version else [kept.version for kept in service.holder.kept]
    return {
        "model_stats": [
            {"name": name, "version": kept, **service.statistics.read(kept)} for kept in versions
        ]
    }


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "data_type": f"TYPE_{spec.dtype}", "dims": list(spec.row_shape)}

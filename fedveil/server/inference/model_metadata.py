"""What the protocol tells of a model: its tensors, its rounds, and where its weights come from."""

from __future__ import annotations

from dataclasses import dataclass

from fedveil.server.inference.engine import ServedRound
from fedveil.server.inference.oip import TensorSpec
from fedveil.server.inference.outputs import OutputForm
from fedveil.server.inference.source import RunSource

__all__ = ["ModelMetadata", "describe"]

_PLATFORM = "fedveil_pytorch"


@dataclass(frozen=True)
class ModelMetadata:
    """What the protocol tells of a model.

    Attributes
    ----------
    name, platform : str
        Of the model.
    versions : tuple of str
        Rounds that are in memory, the one that answers first.
    input, output : TensorSpec
        Its tensors.
    parameters : dict of str to str or float
        Where the weights of one round come from, and what privacy they were made under.
    """

    name: str
    platform: str
    versions: tuple[str, ...]
    input: TensorSpec
    output: TensorSpec
    parameters: dict[str, str | float]


def describe(
    source: RunSource,
    served: ServedRound,
    versions: tuple[str, ...],
    given: TensorSpec,
    output: TensorSpec,
    form: OutputForm,
) -> ModelMetadata:
    """Describe the model of a run, and one of its rounds.

    Parameters
    ----------
    source : RunSource
        The run.
    served : ServedRound
        The round whose weights are described.
    versions : tuple of str
        Rounds that are in memory, the one that answers first.
    given, output : TensorSpec
        What the model takes, and what answers hold.
    form : OutputForm
        The form of the answers.
    """
    dp = source.config.dp
    report = source.report_sha256(served.round)
    claims = {} if served.epsilon is None else {"epsilon": served.epsilon, "delta": dp.delta}
    parameters: dict[str, str | float] = {
        "run": served.run,
        "round": served.round,
        "created": served.created,
        "privacy_unit": "none" if served.epsilon is None else dp.unit,
        "outputs": str(form),
        **claims,
        **({} if served.accuracy is None else {"accuracy": served.accuracy}),
        **({} if report is None else {"report_sha256": report}),
        **({} if given.text is None else {"text_characters": given.text.length}),
    }
    return ModelMetadata(
        name=source.config.task.name,
        platform=_PLATFORM,
        versions=versions,
        input=given,
        output=output,
        parameters=parameters,
    )

"""What a data owner allows: the policy, as a value."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedveil.privacy.ledger_entries import Budget

__all__ = ["POLICY_FORMAT", "DataSetPolicy", "Mode", "Policy"]

POLICY_FORMAT = "fedveil-policy-1"

Mode = Literal["record/local", "record/distributed", "client/distributed", "client/central", "none"]
"""Unit of privacy and who adds the noise; ``none`` is no guarantee."""

_Positive = Annotated[float, Field(gt=0)]
_Epsilon = Annotated[float, Field(gt=0, le=100)]
_Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataSetPolicy(_Section):
    """What may be done with one data set.

    Parameters
    ----------
    tasks : tuple of str
        The tasks that may read it.
    modes : tuple of Mode
        The ways of training that are allowed, all of one unit: a budget is for records or for the
        whole client, and no epsilon covers releases of both. In ``client/central`` the server is
        trusted to add the noise. ``none`` allows exact releases, and any others; no budget can hold
        for them, so it stands alone and without one.
    epsilon, delta : float
        Budget of all runs together, of training and noisy metrics alike; epsilon at most 100.
    epsilon_per_run : float, optional
        Budget of one run, at the same delta.
    min_noise_multiplier : float, optional
        Least noise of any release, in units of its sensitivity.
    max_clip_norm, max_sampling_rate : float, optional
        Ceilings of ``dp.clip_norm`` and ``training.sampling_rate``.
    max_local_steps, max_rounds : int, optional
        Ceilings of ``training.local_steps`` and ``federation.rounds``.
    """

    tasks: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
    modes: Annotated[tuple[Mode, ...], Field(strict=False)] = ("record/local",)
    epsilon: _Epsilon | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    epsilon_per_run: _Epsilon | None = None
    min_noise_multiplier: _Positive | None = None
    max_clip_norm: _Positive | None = None
    max_sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    max_local_steps: Annotated[int, Field(ge=1)] | None = None
    max_rounds: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.tasks or not self.modes:
            raise ValueError("tasks and modes must not be empty")
        budget = {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "epsilon_per_run": self.epsilon_per_run,
            "min_noise_multiplier": self.min_noise_multiplier,
        }
        if "none" in self.modes:
            given = [name for name, value in budget.items() if value is not None]
            if given or len(self.modes) > 1:
                raise ValueError(
                    f'modes = ["none"] allows exact releases, for which no '
                    f"{given[0] if given else 'other mode'} can hold; drop the one or the other"
                )
            return self
        units = list(dict.fromkeys(mode.partition("/")[0] for mode in self.modes))
        if len(units) > 1:
            raise ValueError(
                f"modes protect a {units[0]} here and a {units[1]} there; no epsilon covers "
                "releases of both, so keep the modes of one unit"
            )
        if self.epsilon is None or self.delta is None:
            raise ValueError(
                'a budget is missing: give epsilon and delta, or allow modes = ["none"], without '
                "any guarantee"
            )
        if self.epsilon_per_run is not None and self.epsilon_per_run > self.epsilon:
            raise ValueError(
                f"epsilon_per_run = {self.epsilon_per_run:g} exceeds epsilon = {self.epsilon:g}, "
                "which is for all runs together"
            )
        return self

    def allows(self, mode: str) -> bool:
        """Return whether a mode is allowed: what may go without privacy may go with it."""
        return mode in self.modes or ("none" in self.modes and mode in get_args(Mode))

    @property
    def unit(self) -> str:
        """Whom the budget is for: ``record`` or ``client``; ``none`` without one."""
        return self.modes[0].partition("/")[0]

    @property
    def budget(self) -> Budget | None:
        """The budget; None where exact releases are allowed."""
        if self.epsilon is None or self.delta is None:
            return None
        return Budget(self.epsilon, self.delta, self.epsilon_per_run)


class Policy(_Section):
    """What a data owner allows; whatever it does not allow is refused.

    Parameters
    ----------
    format : str
        `POLICY_FORMAT`.
    secure_aggregation : bool
        Whether updates and figures leave under secure aggregation only.
    min_cohort : int
        Least number of clients in a sum, this one included.
    roster : dict of str to str, optional
        The clients that this one may be summed with: name to public key, in base64. By default all
        that the client's own roster file names.
    expires : datetime.date, optional
        Last day, in UTC, on which anything is allowed.
    tell_figures : bool
        Whether a refusal tells the server the owner's own figures: limits, budget and spend.
    datasets : dict of str to DataSetPolicy
        Data sets by name. The name is what the ledger adds up under: a new name is a new budget.
    """

    format: Literal["fedveil-policy-1"]
    secure_aggregation: bool = True
    min_cohort: Annotated[int, Field(ge=2)] = 2
    roster: dict[str, Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{43}=$")]] | None = None
    expires: date | None = None
    tell_figures: bool = False
    datasets: dict[_Name, DataSetPolicy]

    @model_validator(mode="after")
    def _one_data_set_a_task(self) -> Self:
        if not self.datasets:
            raise ValueError("it names no data set; add one as [datasets.NAME]")
        owner: dict[str, str] = {}
        for name, data in self.datasets.items():
            for task in data.tasks:
                if owner.setdefault(task, name) != name:
                    raise ValueError(
                        f"task {task} stands in the data sets {owner[task]} and {name}; a task "
                        "reads one, or its releases would be charged to the wrong budget"
                    )
        return self

    def data_set_of(self, task: str) -> tuple[str, DataSetPolicy] | None:
        """Return the name and the rules of the data set that a task reads, if it is allowed."""
        return next(((n, d) for n, d in self.datasets.items() if task in d.tasks), None)

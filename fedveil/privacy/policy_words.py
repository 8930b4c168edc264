"""A policy in plain words, for whoever has to answer for it."""

from __future__ import annotations

import math

from fedveil.privacy.policy import DataSetPolicy, Policy

__all__ = ["policy_in_words"]

_NOISES = {
    "record/local": "this client adds",
    "record/distributed": "the clients add in shares",
    "client/distributed": "the clients add in shares",
    "client/central": "the SERVER adds, which this policy trusts to do so",
}


def policy_in_words(policy: Policy) -> list[str]:
    """Return what a policy allows, one sentence a line."""
    lines = [
        _data_set(name, data, data.budget is not None) for name, data in policy.datasets.items()
    ]
    lines += [
        f"Data set {name}: {limits}."
        for name, data in policy.datasets.items()
        if (limits := _limits(data))
    ]
    lines.append(
        "Updates and figures leave this client under secure aggregation only, in a sum over at "
        f"least {policy.min_cohort} clients."
        if policy.secure_aggregation
        else "A run without secure aggregation is allowed: the server then sees this client's "
        f"update by itself. Where it is on, a sum is over at least {policy.min_cohort} clients."
    )
    if policy.roster is not None:
        lines.append(f"The other clients may be: {', '.join(sorted(policy.roster)) or 'nobody'}.")
    lines.append(
        f"It holds up to and including {policy.expires} (UTC); from then on everything is refused."
        if policy.expires is not None
        else "It has no last day."
    )
    lines.append(
        "A refusal tells the server this policy's limits, the budget and what is spent."
        if policy.tell_figures
        else "A refusal tells the server which rule refused, and none of this policy's figures."
    )
    lines.append("Everything else is refused, before a record is read.")
    return lines


def _data_set(name: str, data: DataSetPolicy, has_budget: bool) -> str:
    tasks = ", ".join(data.tasks)
    if not has_budget or data.epsilon is None or data.delta is None:
        return (
            f"Data set {name}: tasks {tasks}, WITHOUT any guarantee of privacy: exact updates may "
            "leave, from which records can be inferred."
        )
    in_one = "" if data.epsilon_per_run is None else f", of which {data.epsilon_per_run:g} in one"
    least = math.ceil(1.0 / data.delta - 1e-9)
    whom, among = (
        ("each record", f"data sets of fewer than {least:,} records")
        if data.unit == "record"
        else ("all that this client holds", f"federations of fewer than {least:,} clients")
    )
    noises = " or ".join(_NOISES[mode] for mode in data.modes if mode in _NOISES)
    return (
        f"Data set {name}: tasks {tasks}, with noise that {noises}, protecting {whom}; "
        f"epsilon at most {data.epsilon:g} over all runs{in_one}, at delta {data.delta:g} "
        f"(which protects {among})."
    )


def _limits(data: DataSetPolicy) -> str:
    limits = (
        ("a noise multiplier of at least", data.min_noise_multiplier),
        ("a clip norm of at most", data.max_clip_norm),
        ("a sampling rate of at most", data.max_sampling_rate),
        ("steps in a round at most", data.max_local_steps),
        ("rounds of a run at most", data.max_rounds),
    )
    return ", ".join(f"{words} {value:g}" for words, value in limits if value is not None)

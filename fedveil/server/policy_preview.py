"""Whether a policy would accept a run, and what the run would cost, before anybody is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedveil.client.policy_file import request_of
from fedveil.config import Config
from fedveil.privacy.ledger import Snapshot
from fedveil.privacy.ledger_entries import Budget, Charge, OverspendError, Purpose, spend
from fedveil.privacy.policy import Policy
from fedveil.privacy.policy_check import refusals
from fedveil.privacy.report_words import rounded_up
from fedveil.server.budget import noise_for_the_rest

__all__ = ["Preview", "preview"]

_RUN = "planned"


@dataclass(frozen=True)
class Preview:
    """What would come of a run.

    Parameters
    ----------
    refused : tuple of str
        Why it would be refused, in whole or from some round on; empty where it would not.
    accepted : str
        What it would cost; empty where it would be refused.
    """

    refused: tuple[str, ...] = ()
    accepted: str = ""


def preview(policy: Policy, config: Config, snapshot: Snapshot) -> Preview:
    """Return what would come of a run under a policy.

    Parameters
    ----------
    policy : Policy
        The owner's.
    config : Config
        The run's settings; the noise is calibrated where they leave it open.
    snapshot : Snapshot
        What is spent.

    Raises
    ------
    FedveilError
        If no noise meets the run's own target, or the task of a run with distributed noise is not
        installed here.
    """
    dimension = 0
    if config.dp.is_private and config.dp.noise == "distributed":
        # Its cost depends on the model's size, and to build a model takes PyTorch's seconds.
        from fedveil.server.federation import prepare
        from fedveil.server.preflight import model_dimension

        config, task = prepare(config, None)
        dimension = model_dimension(task)
    noise = noise_for_the_rest(config, None, 0, dimension)
    if noise is not None:
        dp = config.dp.model_copy(update={"noise_multiplier": noise, "target_epsilon": None})
        config = config.model_copy(update={"dp": dp})
    request = request_of(config, dimension)
    found = refusals(policy, request, snapshot.now().date())
    if found:
        return Preview(refused=tuple(f"({one.reason}) {one.figures}" for one in found))
    named = policy.data_set_of(request.task)
    assert named is not None  # noqa: S101  # else it would have been refused
    name, data = named
    what = f"{request.task} on data set {name}"
    if data.budget is None:
        return Preview(accepted=f"{what}, which has no budget")
    purposes: list[Purpose] = ["train", "evaluate"] if request.metrics == "noisy" else ["train"]
    charges = [request.charge(purpose, name, _RUN, 1, 1) for purpose in purposes]
    of_a_round = [charge for charge in charges if charge is not None]
    return _cost(what, data.budget, snapshot, of_a_round, request.rounds)


def _cost(
    what: str, budget: Budget, snapshot: Snapshot, of_a_round: Sequence[Charge], rounds: int
) -> Preview:
    def complaint(count: int) -> str:
        """Return why the last of so many rounds would be refused, if it would."""
        charges: list[Charge] = [*snapshot.entries, *list(of_a_round) * count]
        try:
            budget.check(charges[:-1], charges[-1])
        except OverspendError as error:
            return str(error)
        return ""

    if complaint(rounds):
        accepted, refused = 0, rounds
        while refused - accepted > 1:
            middle = (accepted + refused) // 2
            accepted, refused = (accepted, middle) if complaint(middle) else (middle, refused)
        why = complaint(refused)
        return Preview(refused=(f"(budget) after {accepted} of {rounds} rounds: {why}",))
    run = list(of_a_round) * rounds
    dataset = of_a_round[0].dataset
    alone = spend(run, dataset).epsilon(budget.delta)
    total = spend([*snapshot.entries, *run], dataset).epsilon(budget.delta)
    return Preview(
        accepted=f"{what}: {rounds} rounds cost epsilon {rounded_up(alone)} at delta "
        f"{budget.delta:g}; with what is spent already that makes {rounded_up(total)} of "
        f"{budget.epsilon:g}"
    )

"""The command `fedveil policy`: what a data owner allows, checked before it is relied on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fedveil.errors import FedveilError
from fedveil.home import default_policy_file, make_private, marks_dir

if TYPE_CHECKING:
    from fedveil.privacy.policy import Policy

__all__ = ["policy"]

policy = typer.Typer(
    help=(
        "Say what this client allows. A server's settings are a request; the policy, a file on the "
        "client's own machine, decides."
    ),
    no_args_is_help=True,
)

_out = Console(soft_wrap=True)


@policy.command("init")
def policy_init(
    task: Annotated[list[str], typer.Option("--task", help="A task to allow. May be repeated.")],
    epsilon: Annotated[float, typer.Option(help="Budget of all runs together, at most 100.")],
    delta: Annotated[
        float, typer.Option(help="Delta, below 1 / number of records, or of clients.")
    ] = 1e-5,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            "--mode",
            metavar="UNIT/NOISE",
            help="Privacy mode to allow. May be repeated, for modes of one unit. Default: "
            "record/local.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Name of the data set that the tasks read. Default: the first task's."),
    ] = None,
    min_cohort: Annotated[
        int, typer.Option(help="Least number of clients in a sum, this one included.")
    ] = 2,
    out: Annotated[
        Path | None, typer.Option(help="File to make. Default: policy.toml in $FEDVEIL_HOME.")
    ] = None,
) -> None:
    """Write a policy to start from: one data set with a budget, everything else refused.

    Example: `fedveil policy init --task heart-disease --epsilon 4`.
    """
    from fedveil.client.policy_file import new_policy, parse_policy
    from fedveil.vault.files import create_file

    path = out or default_policy_file()
    content = new_policy(
        task, epsilon, delta, dataset or task[0], min_cohort, mode or ["record/local"]
    )
    found = parse_policy(content, "the policy")
    try:
        make_private(path.parent)
        create_file(path, lambda sink: sink.write(memoryview(content)))
    except FileExistsError:
        raise FedveilError(
            f"{path} exists already and is left as it is; edit it, or name another --out"
        ) from None
    except OSError as error:
        raise FedveilError(f"{path}: cannot be written ({error.strerror})") from None
    _out.print(f"wrote {path}; it says:", highlight=False)
    _say(found)


@policy.command("check")
def policy_check(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Policy. Default: policy.toml in $FEDVEIL_HOME."),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="A built-in scenario, or the TOML file of a run's settings: would it be accepted?"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the scenario."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(metavar="UNIT/NOISE", help="Privacy mode, with what the scenario says of it."),
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Ledger whose spend counts. Default: nothing is spent.")
    ] = None,
) -> None:
    """Explain in plain words what a policy allows, and whether a scenario would be accepted.

    The exit code is 1 where the scenario would be refused, or the budget does not bear all of it.

    Example: `fedveil policy check policy.toml --scenario digits --set dp.target_epsilon=3`.
    """
    from fedveil.client.policy_file import read_policy

    if scenario is None and (settings or mode is not None or ledger is not None):
        raise FedveilError(
            "--set, --mode and --ledger are about a scenario: name one with --scenario"
        )
    found = read_policy(file or default_policy_file())
    _say(found)
    if scenario is None:
        return
    from fedveil.privacy.ledger import Ledger, Snapshot
    from fedveil.server.policy_preview import preview
    from fedveil.settings import parse_override
    from fedveil.simulations.scenarios import find_scenario

    overrides = [parse_override(text) for text in settings or []]
    config = find_scenario(scenario).config(overrides, mode)
    snapshot = Snapshot() if ledger is None else Ledger(ledger, marks_dir()).read()
    outlook = preview(found, config, snapshot)
    for line in outlook.refused:
        _out.print(f"[bold red]refused:[/] {escape(line)}", highlight=False)
    if outlook.refused:
        raise typer.Exit(1)
    _out.print(f"[bold green]accepted:[/] {escape(outlook.accepted)}", highlight=False)


def _say(found: Policy) -> None:
    from fedveil.privacy.policy_words import policy_in_words

    for line in policy_in_words(found):
        _out.print(f"- {escape(line)}", highlight=False)

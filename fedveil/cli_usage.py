"""What is wrong with a command line, told in one line instead of Typer's box."""

from __future__ import annotations

import click

__all__ = ["told_in_one_line"]


def told_in_one_line(error: click.ClickException) -> str:
    """Return what is wrong with the words of a command, and where its help is.

    Parameters
    ----------
    error : ClickException
        As the parser of options raises it.
    """
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        said = f"{_name(error.param)}: {error.message}"
    else:
        # Typer and click each append what may have been meant.
        said = error.message if "Did you mean" in error.message else error.format_message()
        said = said[:1].lower() + said[1:]
    # What was typed is repeated in it, line breaks included.
    line = " ".join(said.split()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return line if context is None else f"{line}; see: {context.command_path} --help"


def _name(parameter: click.Parameter | None) -> str:
    """Return an option or argument as one types it."""
    if parameter is None:
        return "a value"
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.human_readable_name

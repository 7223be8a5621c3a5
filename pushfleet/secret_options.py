"""
Options that take a secret: from the variable, from a file (`--token @FILE`), and only with a word of warning, or not at
all, from the command line, which every user of the machine can read (`ps`) and which shells keep.
"""

from __future__ import annotations

from collections.abc import Callable

import click
from click.core import ParameterSource

from shared.secrets import holds_secrets, read_secret

Callback = Callable[[click.Context, click.Parameter, str | None], str | None]


def secret_option(elsewhere: str, *, refuse: bool = False, url: bool = False) -> Callback:
    """
    The callback of such an option. `elsewhere`: what to say instead of the option, such as a variable's name.

    `url`: only what the URL holds besides the address is a secret. Raises click.UsageError.
    """

    def check(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        source = context.get_parameter_source(parameter.name or "")
        if value is None or source is not ParameterSource.COMMANDLINE:
            return value
        if value.startswith("@"):
            try:
                return read_secret(value[1:])
            except ValueError as error:
                raise click.BadParameter(str(error)) from None
        if url and not holds_secrets(value):
            return value
        option = parameter.opts[-1]
        better = f"use {elsewhere}: {option} @FILE" if elsewhere == "a file" else f"use {elsewhere}, or {option} @FILE"
        if refuse:
            raise click.UsageError(f"{option}: every user of this machine can read a command line; {better}")
        click.echo(f"Warning: {option} can be read by every user of this machine; {better}", err=True)
        return value

    return check

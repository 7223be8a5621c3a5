"""
`pushfleet gateway` and `pushfleet dispatcher`: the roles' processes, with an option for each of their settings.

The options are made from the settings classes, where each variable, default and meaning is written once: the variable
PUSH_NODE_PORT is the option --node-port. A flag wins over the environment. Values are checked where the role reads
them, so that a wrong one is reported in the same words however it was given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, cast

import click

from dispatcher.settings import DispatcherSettings
from gateway_node.settings import GatewaySettings
from pushfleet.secret_options import secret_option
from shared.secrets import SecretUrl
from shared.settings import RoleSettings, file_variable


def option_name(variable: str) -> str:
    """`--node-port` of PUSH_NODE_PORT."""
    return "--" + variable.removeprefix("PUSH_").lower().replace("_", "-")


def settings_options(settings_class: type[RoleSettings]) -> list[click.Option]:
    """An option for each field. Its value is the text that was given, or None."""
    return [_option(field) for field in dataclasses.fields(cast(Any, settings_class))]


def _option(field: dataclasses.Field[Any]) -> click.Option:
    variable = field.metadata["variable"]
    text = f"{field.metadata['meaning']}  [{variable}; default: {_shown(field.default)}]"
    callback = None
    if secret := field.metadata["secret"]:
        elsewhere = " or ".join(name for name in (variable, file_variable(field)) if name)
        callback = secret_option(elsewhere, refuse=True, url=secret is SecretUrl)
        text += "  @FILE reads it from there; a secret itself is not taken here."
    option = option_name(variable)
    return click.Option([option, field.name], metavar=_metavar(field.default), help=text, callback=callback)


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(int(default))
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) if default not in ("", ()) else "none"


def _metavar(default: object) -> str:
    if isinstance(default, bool):
        return "0|1"
    if isinstance(default, float):
        return "SECONDS"
    return "NUMBER" if isinstance(default, int) else "TEXT"


def _role_command(name: str, package: str, settings_class: type[RoleSettings], help_text: str) -> click.Command:
    def run(**flags: str | None) -> None:
        # Imported when it runs: `pushfleet --help` answers without loading a server.
        role_main: Callable[[Mapping[str, object]], int] = import_module(f"{package}.__main__").main
        click.get_current_context().exit(role_main(flags))

    return click.Command(name, params=[*settings_options(settings_class)], callback=run, help=help_text)


gateway = _role_command(
    "gateway",
    "gateway_node",
    GatewaySettings,
    "Run one node: it holds clients' WebSocket connections. The same as `python -m gateway_node`.",
)
dispatcher = _role_command(
    "dispatcher",
    "dispatcher",
    DispatcherSettings,
    "Run one dispatcher: it takes sends over HTTP and from topics. The same as `python -m dispatcher`.",
)

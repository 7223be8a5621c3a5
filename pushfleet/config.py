"""`pushfleet config show`: the settings that a role would run with here, where each comes from, and no secret."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import click
import orjson

from dispatcher.settings import DispatcherSettings
from gateway_node.settings import GatewaySettings
from shared.settings import RoleSettings, SettingsError, given, load

_ROLES: dict[str, type[RoleSettings]] = {"gateway": GatewaySettings, "dispatcher": DispatcherSettings}
# What stands for a setting that is unset: properties of the settings classes.
_IN_FORCE = {"PUSH_BUS_URL": "bus", "PUSH_NODE_HOST": "bind_host", "PUSH_HTTP_HOST": "bind_host"}


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """One setting. `value` is as `repr` has it, where that is what may be shown."""

    variable: str
    value: object
    source: str
    meaning: str


def shown_settings(settings: RoleSettings, environ: dict[str, str]) -> list[Shown]:
    """Each setting of a role, in the order of its class."""
    return [_shown(field, settings, environ) for field in dataclasses.fields(settings)]


def _shown(field: dataclasses.Field[Any], settings: RoleSettings, environ: dict[str, str]) -> Shown:
    variable = field.metadata["variable"]
    value = getattr(settings, field.name)
    if value == "" and variable in _IN_FORCE:
        value = getattr(settings, _IN_FORCE[variable])
    return Shown(variable, _plain(value), given(field, environ)[1], field.metadata["meaning"])


def _plain(value: object) -> object:
    """For JSON. Secrets are text whose `repr` tells nothing."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, tuple):
        return [str(part) for part in value]
    return repr(value).strip("'") if isinstance(value, str) else str(value)


def _as_text(shown: Shown) -> str:
    value = shown.value
    text = ",".join(map(str, value)) if isinstance(value, list) else int(value) if isinstance(value, bool) else value
    return f"{shown.variable:<26} {text!s:<44} {shown.source}"


@click.group("config")
def config() -> None:
    """Look at settings."""


@config.command("show")
@click.argument("role", type=click.Choice([*_ROLES]), required=False)
@click.option("--json", "as_json", is_flag=True, help="An object for each setting.")
def show(role: str | None, as_json: bool) -> None:
    """
    Print each setting's value in force and where it comes from: default, environment, or the file that a variable with
    _FILE at its end names. Secrets are not shown; of a URL its password and options that may be secret are not.

    Without a role both are shown. Ends with 2 where the role would not start, and says why.
    """
    environ = dict(os.environ)
    found: dict[str, list[Shown]] = {}
    for name in [role] if role else _ROLES:
        try:
            found[name] = shown_settings(load(_ROLES[name], environ), environ)
        except SettingsError as error:
            click.echo(f"Wrong settings of the {name}:\n{error}", err=True)
    if as_json:
        click.echo(orjson.dumps({name: [dataclasses.asdict(one) for one in each] for name, each in found.items()}))
    else:
        click.echo("\n\n".join("\n".join([f"# {name}", *map(_as_text, each)]) for name, each in found.items()))
    if len(found) < (1 if role else len(_ROLES)):
        raise click.exceptions.Exit(2)

"""Lengths of time as people write them on a command line: `90`, `90s`, `15m`, `1h`, `7d`."""

from __future__ import annotations

import re
from typing import Any

import click

_FORM = re.compile(r"([0-9]+)([smhd]?)\Z")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_duration(text: str) -> int:
    """Whole seconds, at least 1. Raises ValueError with what is expected."""
    match = _FORM.match(text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{text!r} is not a length of time; expected 90, 90s, 15m, 1h or 7d")
    return int(match[1]) * _SECONDS[match[2]]


class Duration(click.ParamType[int]):
    """An option's value in whole seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

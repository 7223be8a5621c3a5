"""
The life of a role's process: settings, logs, the event loop, signals, the exit code.

SIGTERM and SIGINT ask the role to stop; it then finishes what it accepted and the process exits 0. A second one asks it
to hurry. Wrong settings exit 2 after saying which variable, what it held and what is expected.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import uvloop

from shared.logs import get_log, set_up_logs
from shared.settings import RoleSettings, SettingsError, load

_log = get_log("process")

Role = TypeVar("Role", bound=RoleSettings)


class Stop(asyncio.Event):
    """Set by the first signal to stop, `again` by the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.again = asyncio.Event()

    def signalled(self) -> None:
        (self.again if self.is_set() else self).set()


def run_role(
    settings_class: type[Role],
    run: Callable[[Role, Stop], Awaitable[None]],
    flags: Mapping[str, object] | None = None,
) -> int:
    """Run `run(settings, stop)` until `stop` is set by a signal and it returned. Gives the process's exit code."""
    try:
        settings = load(settings_class, flags=flags)
    except SettingsError as error:
        print(f"Wrong settings:\n{error}", file=sys.stderr)  # noqa: T201 - before there is a log
        return 2
    set_up_logs(settings.log_level, hide=settings.hidden())
    for variable in settings.open_files():
        effect = "every user of this machine can read the secret in it"
        _log.warning("file_is_open", variable=variable, effect=effect, advice="chmod o-r")
    try:
        uvloop.run(_until_stopped(settings, run))
    except SettingsError as error:  # found while starting: a port that is taken
        print(f"Wrong settings:\n{error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


async def _until_stopped(settings: Role, run: Callable[[Role, Stop], Awaitable[None]]) -> None:
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.signalled)
    await run(settings, stop)

"""
The `pushfleet` command. Here its parts are put together; each stands in a module of its own.

Exit codes: 0 done, 1 it failed (stderr says why), 2 wrong arguments or settings.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import click

from pushfleet.config import config
from pushfleet.dev import dev
from pushfleet.drain import drain
from pushfleet.keys import key
from pushfleet.rocketmq import rocketmq
from pushfleet.roles import dispatcher, gateway
from pushfleet.send import send
from pushfleet.tail import tail
from pushfleet.tokens import token

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


def _version() -> str:
    try:
        return version("pushfleet")
    except PackageNotFoundError:
        return "(not installed)"


@click.group(context_settings=_CONTEXT)
@click.version_option(_version(), prog_name="pushfleet")
def main() -> None:
    """
    Push messages to clients that hold WebSocket connections, over a cluster of nodes.

    First steps, each in a terminal of its own:

    \b
      pushfleet dev                            a whole cluster on this machine; Ctrl-C stops it
      pushfleet tail alice                     be the client alice and show what it receives
      pushfleet send alice '{"hello":1}'       send it something; it need not be connected

    In production each machine runs one role, set up by PUSH_ variables or by the options of the same names:

    \b
      pushfleet gateway --help
      pushfleet dispatcher --help
      pushfleet key new --name billing --scope send --file keys.json
      pushfleet drain 10.0.0.11:9000           have a node leave in order
      pushfleet config show gateway            what it would run with here, without secrets
    """


for command in (dev, send, tail, token, key, gateway, dispatcher, drain, config, rocketmq):
    main.add_command(command)

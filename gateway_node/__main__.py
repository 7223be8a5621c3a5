"""`python -m gateway_node`: one node, set up by environment variables (`--help` lists them)."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from gateway_node.app import run
from gateway_node.settings import GatewaySettings
from shared.process import run_role
from shared.settings import describe


def main(flags: Mapping[str, object] | None = None) -> int:
    """Run a node until it is told to stop; the process's exit code."""
    return run_role(GatewaySettings, run, flags)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"{__doc__}\n\n{describe(GatewaySettings)}")  # noqa: T201
        sys.exit(0)
    sys.exit(main())

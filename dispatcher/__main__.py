"""`python -m dispatcher`: one dispatcher, set up by environment variables (`--help` lists them)."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from dispatcher.app import run
from dispatcher.settings import DispatcherSettings
from shared.process import run_role
from shared.settings import describe


def main(flags: Mapping[str, object] | None = None) -> int:
    """Run a dispatcher until it is told to stop; the process's exit code."""
    return run_role(DispatcherSettings, run, flags)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"{__doc__}\n\n{describe(DispatcherSettings)}")  # noqa: T201
        sys.exit(0)
    sys.exit(main())

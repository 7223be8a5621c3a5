"""What every test has: the loop of production (uvloop), and the fixtures of the harness."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping

import uvloop

pytest_plugins = ["tests.harness.rocketmq", "tests.harness.valkey"]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], AbstractEventLoop]]:
    """Async tests run on uvloop."""
    return {"uvloop": uvloop.new_event_loop}

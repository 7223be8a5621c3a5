"""What every test has: the loop of production (uvloop), and the fixtures of the harness."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping

import uvloop
from hypothesis import HealthCheck, settings

# How long an example takes is no property: a busy machine must not turn a test red.
settings.register_profile("pushfleet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pushfleet")

pytest_plugins = ["tests.harness.rocketmq", "tests.harness.valkey", "tests.harness.valkey_sites"]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], AbstractEventLoop]]:
    """Async tests run on uvloop."""
    return {"uvloop": uvloop.new_event_loop}

"""The ticker's wheel: who is in it."""

from __future__ import annotations

import time
from typing import Any, cast

from gateway_node.hub import Hub
from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from gateway_node.ticker import Ticker


def session(number: int, *, expires_s: float = 0.0) -> Session:
    return Session(b"n:1_a_%d" % number, "a", cast(Any, None), ack=True, expires_s=expires_s, device="")


def ticker() -> Ticker:
    return Ticker(Hub(), cast(Any, None), GatewaySettings(), lambda now: True)


def test_who_has_ended_is_not_in_the_wheel() -> None:
    """Clients that come and go as fast as they can leave nothing behind."""
    wheel = ticker()
    staying = session(0)
    wheel.watch(staying)
    for number in range(1, 1000):
        passing = session(number)
        wheel.watch(passing)
        wheel.forget(passing)
        wheel.forget(passing)
    assert 1 == len(wheel)


def test_a_session_is_in_the_wheel_once() -> None:
    """Also when its token now ends sooner than it would have been looked at."""
    wheel = ticker()
    watched = session(1)
    wheel.watch(watched)
    watched.expires_s = time.time() + 2
    wheel.ends_otherwise(watched)
    assert 1 == len(wheel)
    wheel.forget(watched)
    assert 0 == len(wheel)

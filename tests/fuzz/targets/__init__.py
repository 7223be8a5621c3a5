"""All targets, by name."""

from __future__ import annotations

from tests.fuzz.target import Target
from tests.fuzz.targets import (
    addresses,
    configuration,
    dialects,
    frames,
    handshake,
    http_bodies,
    long_texts,
    records,
    rocketmq,
    stored,
    tokens,
)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        addresses.TARGET,
        configuration.TARGET,
        dialects.TARGET,
        frames.TARGET,
        handshake.TARGET,
        http_bodies.TARGET,
        long_texts.TARGET,
        records.TARGET,
        rocketmq.TARGET,
        stored.TARGET,
        tokens.TARGET,
    )
}

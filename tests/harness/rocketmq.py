"""
Real RocketMQ brokers for tests, started from the jars that `pushfleet.local_rocketmq` fetches.

`shared_rocketmq` is the one broker of a test run: take it unless the test stops or configures a broker. Tests on it
keep apart by topic names (`fresh_topic`). `running_rocketmq` is a broker of a test's own.

A broker takes about 6 s to start, so share.
"""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pushfleet.local_rocketmq import Credentials, LocalRocketMQ, ServerTls


@asynccontextmanager
async def running_rocketmq(
    tmp_dir: Path,
    *,
    brokers: int = 1,
    credentials: Credentials | None = None,
    tls: ServerTls | None = None,
    **broker_options: str,
) -> AsyncIterator[LocalRocketMQ]:
    """A RocketMQ under `tmp_dir`, up when the block is entered: `.url`, `.kill()`, `await .restart()`."""
    rocketmq = LocalRocketMQ(
        tmp_dir / "rocketmq", brokers=brokers, credentials=credentials, tls=tls, broker_options=broker_options
    )
    await rocketmq.start()
    try:
        yield rocketmq
    finally:
        await rocketmq.stop(grace_s=0)


@pytest.fixture(scope="session")
def shared_rocketmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRocketMQ]:
    """One broker for the whole run. Its processes belong to no event loop, so tests on any loop may use it."""
    rocketmq = LocalRocketMQ(tmp_path_factory.mktemp("rocketmq"))
    # A loop of its own that leaves the tests' alone, in this thread: the children end with the thread that starts them.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(rocketmq.start())
    yield rocketmq
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(rocketmq.stop(grace_s=0))


def fresh_topic(what: str = "t") -> str:
    """A topic name that no other test has."""
    return f"{what}-{uuid.uuid4().hex[:12]}"


def self_signed(folder: Path) -> ServerTls:
    """A certificate for servers of a test's own, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return ServerTls(certificate, key)

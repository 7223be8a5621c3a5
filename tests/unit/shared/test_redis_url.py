"""URLs of Redis: what they say, and what is said about a wrong one."""

from __future__ import annotations

import pytest
from redis.asyncio import SSLConnection

from shared.bus import open_bus
from shared.redis_clients import open_sentinel
from shared.redis_url import Kind, RedisUrl, read_redis_url
from shared.settings import bus_url
from shared.store import Store

EXPECTED = r"expected redis://host:6379/0, redis\+sentinel://.+ or redis\+cluster://"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://h", RedisUrl(Kind.SINGLE, (("h", 6379),), "redis://h:6379/0")),
        ("rediss://u:p@h:1/3?x=y", RedisUrl(Kind.SINGLE, (("h", 1),), "rediss://u:p@h:1/3?x=y")),
        ("redis://[::1]:7/", RedisUrl(Kind.SINGLE, (("::1", 7),), "redis://[::1]:7/0")),
        ("redis+cluster://:p%40@a,b:2", RedisUrl(Kind.CLUSTER, (("a", 6379), ("b", 2)), "redis://:p%40@a:6379/0")),
        (
            "rediss+cluster://[::1]:7,b?ssl_ca_certs=%2Fca.pem",
            RedisUrl(Kind.CLUSTER, (("::1", 7), ("b", 6379)), "rediss://[::1]:7/0?ssl_ca_certs=%2Fca.pem"),
        ),
        (
            "redis+sentinel://u:p@a,b:2/main?sentinel_password=s%2B",
            RedisUrl(Kind.SENTINEL, (("a", 26379), ("b", 2)), "redis://u:p@a:26379/0", "main", "", "s+"),
        ),
        ("redis+sentinel://a/main/5", RedisUrl(Kind.SENTINEL, (("a", 26379),), "redis://a:26379/5", "main")),
    ],
)
def test_a_url_is_read(text: str, expected: RedisUrl) -> None:
    """Hosts with their ports, the service, and what the data servers are told; a bus takes the same."""
    assert expected == read_redis_url(text)
    assert text == bus_url(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://h", EXPECTED),
        ("redis+other://h", EXPECTED),
        ("redis://", EXPECTED),
        ("redis://:secret@h:port/0", EXPECTED),
        ("redis+cluster://a,", EXPECTED),
        ("redis://a,b", "one server has one host"),
        ("redis://h/name", "the database is a number"),
        ("redis+cluster://a/1", "database 0 alone"),
        ("redis+cluster://a/0/1", "the database is a number"),
        ("redis+cluster://a?ssl_nothing=1", "unknown option ssl_nothing"),
        ("redis+cluster://a?sentinel_password=secret", "unknown option sentinel_password"),
        ("redis://:secret\u2100@a/0", "no URL"),
        ("redis+sentinel://u/main?secret=@a", "unknown option .not shown."),
        ("redis+cluster://u?secret#@a", "unknown option .not shown."),
        ("redis+sentinel://:secret@a", "after the Sentinels comes what they call the master"),
        ("redis+sentinel://a/main/one", "the database is a number"),
        ("redis+sentinel://a/main/1/2", "the database is a number"),
    ],
)
def test_a_wrong_url_is_told_what_is_expected(text: str, said: str) -> None:
    """Before anything connects, by the settings, the store and the bus alike; never with the password."""
    for take in (
        read_redis_url,
        bus_url,
        lambda url: Store(url, namespace="n"),
        lambda url: open_bus(url, namespace="n"),
    ):
        with pytest.raises(ValueError, match=said if take is read_redis_url else ".") as error:
            take(text)
        assert "secret" not in str(error.value)


def test_tls_reaches_every_server() -> None:
    """rediss: the master, the nodes of a cluster, and the Sentinels too, with the same certificates."""
    sentinel = open_sentinel(read_redis_url("rediss+sentinel://a/main?ssl_ca_certs=ca.pem&sentinel_password=s"))
    pool = sentinel.sentinels[0].connection_pool
    assert issubclass(pool.connection_class, SSLConnection)
    assert ("ca.pem", "s") == (pool.connection_kwargs["ssl_ca_certs"], pool.connection_kwargs["password"])
    for url in ("rediss+sentinel://a/main?ssl_ca_certs=ca.pem", "rediss://a?ssl_ca_certs=ca.pem"):
        pool = Store(url, namespace="n").redis.connection_pool
        assert issubclass(pool.connection_class, SSLConnection)
        assert "ca.pem" == pool.connection_kwargs["ssl_ca_certs"]
    options = Store("rediss+cluster://u:p@a?ssl_ca_certs=ca.pem", namespace="n").redis.connection_kwargs  # type: ignore[attr-defined]
    assert issubclass(options["connection_class"], SSLConnection)
    assert ("ca.pem", "u", "p") == (options["ssl_ca_certs"], options["username"], options["password"])

"""
Where Redis is: the URLs that PUSH_REDIS_URL and PUSH_BUS_URL take.

    redis://[user:password@]host[:6379][/db]                              one server
    redis+sentinel://[user:password@]host[:26379][,host2]/service[/db]    the master that Sentinels name
    redis+cluster://[user:password@]host[:6379][,host2]                   a Redis Cluster, found through any of these

`rediss` instead of `redis` is TLS, on a site with Sentinels to these as well. Options follow after `?`: `ssl_...` as
redis-py names them, and for Sentinels that ask for credentials of their own `sentinel_username`, `sentinel_password`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

EXPECTED = (
    "redis://host:6379/0, redis+sentinel://host:26379,host2:26379/service or redis+cluster://host:6379,host2:6379"
)

_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_OPTIONS = (
    "client_name",
    "ssl_ca_certs",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
    "ssl_min_version",
)


class Kind(Enum):
    """How the servers belong together."""

    SINGLE = ""
    SENTINEL = "+sentinel"
    CLUSTER = "+cluster"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """
    A URL in its parts. `hosts`: the server, the Sentinels, or some nodes of the cluster.

    `plain` is the `redis://` or `rediss://` URL of a server at the first host, with the credentials, database and
    options of the data servers. `service` is what the Sentinels call the master.
    """

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    plain: str
    service: str = ""
    sentinel_username: str = ""
    sentinel_password: str = ""

    @property
    def name(self) -> str:
        """For logs and metrics: where it is, without credentials."""
        host, port = self.hosts[0]
        return f"{self.service}@{host}:{port}" if self.service else f"{host}:{port}"


def read_redis_url(text: str) -> RedisUrl:
    """Raises ValueError with what is expected; its words hold nothing of a password."""
    parts = split_url(text)
    scheme, plus, kind_name = parts.scheme.partition("+")
    kinds = {kind.value: kind for kind in Kind}
    kind = kinds.get(plus + kind_name)
    if kind is None or scheme not in ("redis", "rediss"):
        raise ValueError(f"expected {EXPECTED}")
    credentials, at, places = parts.netloc.rpartition("@")
    hosts = tuple(_host(place, 26379 if kind is Kind.SENTINEL else 6379) for place in places.split(","))
    if kind is Kind.SINGLE and len(hosts) > 1:
        raise ValueError(f"one server has one host; expected {EXPECTED}")
    service, database = _path(kind, parts.path)
    astray = "@" in parts.query + parts.fragment  # a password with a ? in it may be among the options
    options, of_sentinels = _options(kind, parts.query, hidden=astray)
    host, port = hosts[0]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    plain = f"{scheme}://{credentials}{at}{place}/{database}{'?' if options else ''}{options}"
    return RedisUrl(kind, hosts, plain, service, **of_sentinels)


def split_url(text: str) -> SplitResult:
    """Raises ValueError, of which the original's words hold the credentials."""
    try:
        return urlsplit(text)
    except ValueError:
        raise ValueError("no URL") from None


def _host(text: str, port: int) -> tuple[str, int]:
    try:
        place = urlsplit(f"//{text}")
        if place.hostname and not place.path and not place.query:
            return place.hostname, place.port or port
    except ValueError:  # a port that is none
        pass
    raise ValueError(f"expected {EXPECTED}")


def _path(kind: Kind, path: str) -> tuple[str, str]:
    """(service, database)"""
    words = path.strip("/").split("/")
    if kind is Kind.SENTINEL:
        service, database, *rest = (*words, "0") if len(words) == 1 else words
        if not service:
            raise ValueError("after the Sentinels comes what they call the master: redis+sentinel://host:26379/service")
    else:
        service = ""
        database, *rest = words
    if rest or not (database or "0").isdecimal():
        raise ValueError(f"the database is a number; expected {EXPECTED}")
    if kind is Kind.CLUSTER and int(database or "0"):
        raise ValueError(f"a Redis Cluster has database 0 alone; expected {EXPECTED}")
    return service, database or "0"


def _options(kind: Kind, query: str, *, hidden: bool) -> tuple[str, dict[str, str]]:
    """The options of the data servers as they were, and those of the Sentinels. `hidden`: no name is told."""
    if kind is Kind.SINGLE:
        return query, {}
    given = parse_qsl(query, keep_blank_values=True)
    known = (*_OPTIONS, *_SENTINEL_OPTIONS) if kind is Kind.SENTINEL else _OPTIONS
    for name, _ in given:
        if name not in known:
            shown = "(not shown)" if hidden else name
            raise ValueError(f"unknown option {shown}; expected {', '.join(known)}")
    rest = [(name, value) for name, value in given if name not in _SENTINEL_OPTIONS]
    return urlencode(rest), {name: value for name, value in given if name in _SENTINEL_OPTIONS}

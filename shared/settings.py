"""
Settings: frozen dataclasses whose fields each name their environment variable, default and meaning, once.

A value comes from a flag, else from the environment, else it is the field's default. What is secret may stand in a
file, which the variable with `_FILE` at its end names. `load` reads all of a class and names every fault at once
(variable, value, what is expected). Nobody else reads the environment, and there is no global settings object: each
role builds its own and hands parts of it on.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from shared.addresses import Network, networks
from shared.json_text import DEEPEST, MOST_DEEP
from shared.redis_url import EXPECTED, read_redis_url, split_url
from shared.secrets import Secret, SecretUrl, hidden_texts, open_to_others, read_secret

Settings = TypeVar("Settings")


class SettingsError(Exception):
    """One line a fault: the variable, the value it had, and what is expected."""


def cannot_listen(variable: str, port: int, error: OSError) -> SettingsError:
    """For a port that cannot be bound."""
    return SettingsError(f"{variable}={port}: {error.strerror or error}; expected a free port of this machine")


def wrong_setting(variable: str, value: str, reason: str) -> SettingsError:
    """For what only turns out when it is used."""
    return SettingsError(f"{variable}={value!r}: {reason}")


def setting(
    variable: str,
    default: Any,
    meaning: str,
    parse: Callable[[str], Any] | None = None,
    *,
    secret: type[Secret] | None = None,
) -> Any:
    """
    A field of a settings class. `parse` turns the text into the value or raises ValueError with what is expected.

    `secret` is the class of the values of what is never shown, or of a URL that may hold a password.
    """
    return dataclasses.field(
        default=default, metadata={"variable": variable, "meaning": meaning, "parse": parse, "secret": secret}
    )


def file_variable(field: dataclasses.Field[Any]) -> str | None:
    """What names a file that holds the variable's value: for secrets alone (the JWKS is in a file as it is)."""
    metadata = field.metadata
    return f"{metadata['variable']}_FILE" if metadata["secret"] and metadata["parse"] is not jwks else None


def given(
    field: dataclasses.Field[Any], environ: Mapping[str, str], flags: Mapping[str, object] | None = None
) -> tuple[str | None, str]:
    """A field's text and where it comes from (`default`, `flag`, `environment`, `file PATH`). Raises ValueError."""
    variable = field.metadata["variable"]
    flag = (flags or {}).get(field.name)
    if flag is not None:
        return str(flag), "flag"
    text = environ.get(variable)
    in_file = file_variable(field)
    path = environ.get(in_file) if in_file else None
    if path and text is not None:
        raise ValueError(f"expected this or {in_file}, not both")
    if path:
        return read_secret(path), f"file {path}"
    return text, "default" if text is None else "environment"


def load(
    cls: type[Settings], environ: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
) -> Settings:
    """Build `cls` from flags (by field name; None is not given) and the environment. Raises SettingsError."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    faults: list[str] = []
    for field in dataclasses.fields(cast(Any, cls)):
        secret, text = field.metadata["secret"], None
        parse = field.metadata["parse"] or _parser_of(field.default)
        try:
            text, _ = given(field, environ, flags)
            if text is None:
                continue
            value = parse(_utf8(text).strip())
            values[field.name] = secret(value) if secret else value
        except ValueError as error:
            shown = "(not shown)" if secret and (secret is Secret or text is None) else repr((secret or str)(text))
            faults.append(f"{field.metadata['variable']}={shown}: {error}")
    if faults:
        raise SettingsError("\n".join(faults))
    built = cls(**values)
    faults = list(built.faults()) if hasattr(built, "faults") else []
    if faults:
        raise SettingsError("\n".join(faults))
    return built


def _utf8(text: str) -> str:
    """Raises ValueError for what the environment has in another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected UTF-8") from None
    return text


def _parser_of(default: object) -> Callable[[str], Any]:
    if isinstance(default, bool):
        return parse_flag
    if isinstance(default, int):
        return whole(0)
    if isinstance(default, float):
        return seconds(0.001)
    return str


def parse_flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("expected 1 or 0")


def whole(least: int, most: int = 2**53) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ValueError(f"expected a whole number from {least} to {most}")
        return value

    return parse


port_number = whole(0, 65535)


def seconds(least: float, most: float = 86_400.0) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            raise ValueError(f"expected seconds from {least:g} to {most:g}")
        return value

    return parse


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"expected {' or '.join(words)}")
        return text.lower()

    return parse


def redis_url(text: str) -> str:
    read_redis_url(text)
    return text


def bus_url(text: str) -> str:
    """Empty stays empty: the default."""
    parts = split_url(text)
    if parts.scheme.startswith("redis"):
        return redis_url(text)
    if text and (parts.scheme != "rocketmq" or not parts.netloc):
        raise ValueError(f"expected rocketmq://host:9876[,host:9876], {EXPECTED}")
    return text


def namespace(text: str) -> str:
    if not 1 <= len(text) <= 32 or not text.replace("-", "").isalnum() or not text.isascii():
        raise ValueError("expected 1 to 32 of A-Z a-z 0-9 -")
    return text


def existing_file(text: str) -> str:
    try:
        if text and not Path(text).is_file():
            raise ValueError("expected the path of a file that can be read")
    except OSError as error:
        raise ValueError(f"expected the path of a file that can be read ({error.strerror})") from None
    return text


def jwks(text: str) -> str:
    """A JWKS file, which has to be there, or a URL, which need not answer yet."""
    if text.startswith(("http://", "https://")):
        return text
    return existing_file(text)


def is_loopback(host: str) -> bool:
    """Whether a bind address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class RoleSettings:
    """What both roles read."""

    redis_url: str = setting(
        "PUSH_REDIS_URL", "redis://127.0.0.1:6379/0", "Redis or Valkey", redis_url, secret=SecretUrl
    )
    bus_url: str = setting("PUSH_BUS_URL", "", "the bus; default: streams on PUSH_REDIS_URL", bus_url, secret=SecretUrl)
    namespace: str = setting("PUSH_NAMESPACE", "push", "prefix of every topic, group and Redis key", namespace)
    auth: str = setting("PUSH_AUTH", "jwt", "jwt, or off (development on loopback)", one_of("jwt", "off"))
    insecure: bool = setting("PUSH_INSECURE", False, "1 allows PUSH_AUTH=off on an address others can reach")
    create_topics: bool = setting("PUSH_CREATE_TOPICS", True, "0 where a site creates the fixed topics itself")
    presence: bool = setting("PUSH_PRESENCE", True, "off: sessions that come and go are not told on push-presence")
    jwt_secret: str = setting("PUSH_JWT_SECRET", "", "HS256 secret of connect tokens, 32 bytes or more", secret=Secret)
    jwt_jwks: str = setting(
        "PUSH_JWT_JWKS", "", "their keys: a JWKS file, or an http(s) URL of one", jwks, secret=SecretUrl
    )
    jwt_audience: str = setting("PUSH_JWT_AUDIENCE", "", "what their aud has to be or hold; unset: any")
    jwt_issuer: str = setting("PUSH_JWT_ISSUER", "", "what their iss has to be; unset: any")
    tls_cert: str = setting(
        "PUSH_TLS_CERT", "", "PEM certificate and chain of the role's port; unset: no TLS", existing_file
    )
    tls_key: str = setting("PUSH_TLS_KEY", "", "its PEM key, not encrypted", existing_file)
    trusted_proxies: tuple[Network, ...] = setting(
        "PUSH_TRUSTED_PROXIES",
        (),
        "address ranges of proxies whose X-Forwarded-For is believed; unset: nobody's",
        networks,
    )
    lease_s: float = setting("PUSH_LEASE", 10.0, "seconds after which a silent node is dead", seconds(1, 3600))
    group_members: int = setting("PUSH_GROUP_MEMBERS", 100_000, "members a group has at most", whole(1))
    client_groups: int = setting("PUSH_CLIENT_GROUPS", 1_000, "groups a client is in at most", whole(1))
    json_depth: int = setting("PUSH_JSON_DEPTH", DEEPEST, "levels that JSON may be nested", whole(8, MOST_DEEP))
    log_level: str = setting(
        "PUSH_LOG_LEVEL", "info", "debug, info, warning or error", one_of("debug", "info", "warning", "error")
    )

    @property
    def bus(self) -> str:
        """The bus's URL."""
        return self.bus_url or self.redis_url

    def hidden(self) -> list[str]:
        """What no log may hold."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return [text for value in values if isinstance(value, Secret) for text in hidden_texts(value)]

    def open_files(self, environ: Mapping[str, str] | None = None) -> list[str]:
        """Variables whose file has a secret and can be read by every user of the machine."""
        environ = os.environ if environ is None else environ
        found = []
        for field in dataclasses.fields(self):
            if field.metadata["parse"] in (existing_file, jwks) and open_to_others(getattr(self, field.name)):
                found.append(field.metadata["variable"])
            in_file = file_variable(field)
            if in_file and open_to_others(environ.get(in_file, ""), always=True):
                found.append(in_file)
        return found

    @property
    def default_host(self) -> str:
        """Every address; without authentication only this machine's own."""
        return "127.0.0.1" if self.auth == "off" else "0.0.0.0"

    def token_fault(self) -> list[str]:
        """A secret that can be guessed is refused."""
        faults = []
        if self.jwt_secret and len(self.jwt_secret.encode()) < 32:
            faults.append("PUSH_JWT_SECRET=(not shown): expected 32 bytes or more")
        if self.jwt_secret.startswith(("-----BEGIN ", "ssh-")):
            faults.append("PUSH_JWT_SECRET=(not shown): expected a secret; public keys belong in PUSH_JWT_JWKS")
        return faults

    def tls_fault(self) -> list[str]:
        """A certificate without its key, or a key without its certificate."""
        if bool(self.tls_cert) == bool(self.tls_key):
            return []
        missing = "PUSH_TLS_KEY" if self.tls_cert else "PUSH_TLS_CERT"
        return [f"{missing}='': expected a PEM file, since the other of PUSH_TLS_CERT and PUSH_TLS_KEY is set"]

    def auth_fault(self, variable: str, host: str) -> list[str]:
        """PUSH_AUTH=off on an address that others can reach is refused."""
        if self.auth != "off" or self.insecure or is_loopback(host):
            return []
        return [f"PUSH_AUTH='off': refused with {variable}={host!r}; expected a loopback address, or PUSH_INSECURE=1"]


def describe(cls: type[RoleSettings]) -> str:
    """A line for each variable of a settings class: name, default, meaning."""
    lines = []
    for field in dataclasses.fields(cls):
        default = field.default
        shown = (
            ",".join(map(str, default))
            if isinstance(default, tuple)
            else f"{default:d}"
            if isinstance(default, bool)
            else default
        )
        lines.append(f"  {field.metadata['variable']:<24} {shown!s:<26} {field.metadata['meaning']}")
    return "\n".join(lines)

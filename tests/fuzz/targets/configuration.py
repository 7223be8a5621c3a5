"""
What operators write: settings, Redis URLs, the file of API keys. SettingsError and KeysFault alone, and no secret in
their words.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, cast

import msgspec

from dispatcher.callers import Callers
from dispatcher.key_file import KeysFault, load_keys
from dispatcher.settings import DispatcherSettings
from gateway_node.settings import GatewaySettings
from shared.errors import Unauthorized
from shared.redis_url import EXPECTED, read_redis_url
from shared.settings import SettingsError, load
from tests.fuzz.target import Chooser, Target

_FIELDS = [
    (settings, field.metadata["variable"], field.metadata["secret"])
    for settings in (GatewaySettings, DispatcherSettings)
    for field in dataclasses.fields(cast(Any, settings))
]
_FILES = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
_KEYS_FILE = tempfile.NamedTemporaryFile(prefix="pushfleet-fuzz-", suffix=".json", dir=_FILES)  # noqa: SIM115
atexit.register(_KEYS_FILE.close)
_EXPECTED = f"expected rocketmq://host:9876[,host:9876], {EXPECTED}"
_PASSWORD = "xYzZyPASSWORD"


def run(data: bytes) -> None:
    chooser = Chooser(data)
    (_variable, _url, _keys)[chooser.below(3)](chooser)


def _variable(chooser: Chooser) -> None:
    """One variable of a role, and what the environment can hold: anything but NUL."""
    settings, variable, secret = _FIELDS[chooser.below(256) % len(_FIELDS)]
    text = chooser.rest().replace(b"\0", b"").decode("utf-8", "surrogateescape")
    try:
        load(settings, {"PUSH_AUTH": "off", variable: text})
    except SettingsError as fault:
        words = str(fault)
        assert variable in words
        if secret and len(text) > 12 and not variable.endswith("_URL"):  # of a URL the password alone is secret
            assert text not in words or text in _EXPECTED, "a secret is in the fault"


def _url(chooser: Chooser) -> None:
    """A URL with a password in it, which may hold what should have been escaped."""
    scheme = ("redis", "rediss", "redis+sentinel", "redis+cluster", "rediss+cluster", "rocketmq")[chooser.below(6)]
    before, after = chooser.take(chooser.below(8)), chooser.take(chooser.below(8))
    password = (before + _PASSWORD.encode() + after).replace(b"\0", b"")
    behind = chooser.rest().replace(b"\0", b"").replace(_PASSWORD.encode(), b"-")
    text = f"{scheme}://u:".encode() + password + b"@" + behind
    _judge_url(text.decode("utf-8", "surrogateescape"))


def _judge_url(text: str) -> None:
    try:
        url = read_redis_url(text)
    except ValueError as fault:
        assert _PASSWORD not in str(fault), "a password is in the fault"
    else:
        assert url.hosts
        assert all(host and 0 <= port < 65536 for host, port in url.hosts)
        assert read_redis_url(url.plain).hosts == url.hosts[:1]
    for settings in (GatewaySettings, DispatcherSettings):
        for variable in ("PUSH_REDIS_URL", "PUSH_BUS_URL"):
            try:
                load(settings, {"PUSH_AUTH": "off", variable: text})
            except SettingsError as error:
                assert _PASSWORD not in str(error), "a password is in the fault"


def _keys(chooser: Chooser) -> None:
    text = chooser.rest()
    Path(_KEYS_FILE.name).write_bytes(text)
    try:
        entries = load_keys(_KEYS_FILE.name)
    except KeysFault as fault:
        assert _PASSWORD not in str(fault), "a key is in the fault"
        return
    assert entries
    assert len({entry.name for entry in entries}) == len(entries)
    callers = Callers(entries)
    for entry in msgspec.to_builtins(entries):
        if entry.get("key"):
            found = callers.find(entry["key"])
            assert found is not None or entry["expires"], "a key of the file is not known"
            assert found is None or found.name == entry["name"]
    try:
        callers.identify("nobody's")
    except Unauthorized:
        return
    raise AssertionError("a key that is not in the file was taken")


_ENTRY = {"name": "billing", "key": f"{_PASSWORD}-a-long-one", "scopes": ["send"], "rate": 10, "quota": 5}
_HASHED = {"name": "shop", "sha256": "ab" * 32, "scopes": ["read", "admin"]}
_SEEDS = (
    *(bytes((0, place)) + b"1" for place in range(len(_FIELDS))),
    b"\0\1redis+sentinel://:pw@a:26379,b/service/0?sentinel_password=x",
    b"\0\1rocketmq://127.0.0.1:9876,b:9876?accessKey=a&secretKey=b&tls=1",
    b"\1\0\0\0[::1]:6379/0",
    b"\1\3\0\0a,b:7000/0?ssl_cert_reqs=none",
    b"\1\2\0\0a,b:7000/master/2",
    b"\1\2\1\0?=a/b",
    "\1\0\0\3\u2100h/0".encode(),
    b"\2" + json.dumps({"keys": [_ENTRY]}).encode(),
    b"\2" + json.dumps({"keys": [_ENTRY, _HASHED]}).encode(),
    b"\2" + json.dumps({"keys": [_ENTRY | {"expires": "2027-06-30T00:00:00Z"}, _HASHED | {"expires": 9e9}]}).encode(),
    b"\2" + json.dumps({"keys": [_HASHED | {"sha256": ["ab" * 32, "cd" * 32]}]}).encode(),
)

TARGET = Target("configuration", run, _SEEDS, most=1024)

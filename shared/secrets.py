"""
Secrets in settings: text that is used as it is and never shown.

`repr` of a Secret tells nothing of it, so that neither the settings object, nor a traceback that has it, nor a fault
does. A SecretUrl shows where it leads, without its password and without what follows `?`, but for options that are
known to be harmless. Logs are searched for both before they are written (`hidden_texts`, shared.logs).
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

NOT_SHOWN = "(not shown)"
_MASK = "***"
_PLAIN_OPTIONS = re.compile(r"tls|tlsCa|tlsCheckHostname|clientName|client_name|ssl_\w+|sentinel_username|db")
_HOSTS = re.compile(r"(?:[\w.-]*|\[[0-9A-Fa-f:.]+\])(?::\d*)?(?:,(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::\d*)?)*")
_IN_A_FILE = re.compile(r'"key"\s*:|"kty"\s*:\s*"oct"|"d"\s*:|PRIVATE KEY-----')
_LEAST = 8  # characters; what is shorter would be found in words that are none of it


class Secret(str):
    """Text whose `repr` shows nothing of it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return NOT_SHOWN if self else "''"


class SecretUrl(Secret):
    """A URL, or a path, whose `repr` shows where it leads."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(masked_url(str(self)))


def masked_url(text: str) -> str:
    """The URL with its secrets masked; nothing of it where that cannot be told for sure. Other text stays."""
    if "://" not in text:
        return text if "@" not in text else NOT_SHOWN
    try:
        parts = urlsplit(text)
    except ValueError:
        return NOT_SHOWN
    credentials, at, hosts = parts.netloc.rpartition("@")
    if "@" in parts.path + parts.query + parts.fragment or not _HOSTS.fullmatch(hosts):
        return NOT_SHOWN  # a password with a / ? or # in it, written as it is
    user, colon, _ = credentials.partition(":")
    shown = f"{user}:{_MASK}@" if colon else f"{_MASK}{at}" if at else ""
    query = "?" + "&".join(_masked_option(pair) for pair in parts.query.split("&")) if parts.query else ""
    return f"{parts.scheme}://{shown}{hosts}{parts.path}{query}"


def _masked_option(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    return pair if _PLAIN_OPTIONS.fullmatch(name) else f"{name}={_MASK}" if equals else _MASK


def holds_secrets(text: str) -> bool:
    """Whether the mask takes something away."""
    return masked_url(text) != text


def hidden_texts(value: Secret) -> Iterator[str]:
    """What must not be found anywhere: a secret whole, of a URL each of its secrets, as written and as meant."""
    if not isinstance(value, SecretUrl):
        found = [str(value)]
    elif not holds_secrets(value):
        return
    elif masked_url(value) == NOT_SHOWN:
        found = [str(value)]
    else:
        parts = urlsplit(value)
        credentials = parts.netloc.rpartition("@")[0]
        found = [str(value), credentials.partition(":")[2] or credentials]
        pairs = (pair.partition("=") for pair in parts.query.split("&"))
        found += [text or name for name, _, text in pairs if not _PLAIN_OPTIONS.fullmatch(name)]
    for text in found:
        for form in {text, unquote(text)}:
            if len(form) >= _LEAST:
                yield form


def read_secret(path: str) -> str:
    """What a file holds, without white space around it. Raises ValueError."""
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"the file cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None


def open_to_others(path: str, *, always: bool = False) -> bool:
    """Whether every user of this machine can read the file, and it has a private or plain key (or is one `always`)."""
    try:
        if not path or not stat.S_IMODE(Path(path).stat().st_mode) & stat.S_IROTH:
            return False
        return always or _IN_A_FILE.search(Path(path).read_text("utf-8", "replace")) is not None
    except OSError:
        return False

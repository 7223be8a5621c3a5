"""`pushfleet key`: API keys of business systems, made and kept in the file that the dispatchers read."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from dispatcher.key_file import MOST_DIGESTS, SCOPES, KeyEntry, KeysFault, digest_of, mint_key, name_fault, read_keys
from pushfleet.durations import Duration

Entries = list[dict[str, Any]]
_FILE = click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="PUSH_API_KEYS",
    show_envvar=True,
    help="The file of keys.",
)


@click.group("key")
def key() -> None:
    """
    Make, list and remove API keys, with which business systems send.

    Dispatchers read the file again within seconds when it changes; nothing has to be restarted.

    \b
      export PUSH_API_KEYS=keys.json
      export PUSH_API_KEY="$(pushfleet key new --name billing --scope send)"
      pushfleet key list
      pushfleet key new --name billing --rotate     a second key; the first one stays good
      pushfleet key remove billing --old            now only the second one is
    """


@key.command("new")
@click.option("--name", required=True, help="Who the key is for: its messages come from this name.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="What it may; repeat it for more.")
@click.option("--rate", type=float, help="Sends a second at most, in each dispatcher.")
@click.option("--quota", type=int, help="Sends a day (UTC) at most, over all dispatchers.")
@click.option("--ttl", type=Duration(), help="How long the key is good: 12h, 90d.")
@click.option("--rotate", is_flag=True, help="A further key for a name that is there; the older ones stay good.")
@_FILE
def new(
    name: str,
    scopes: tuple[str, ...],
    rate: float | None,
    quota: int | None,
    ttl: int | None,
    rotate: bool,
    file: Path | None,
) -> None:
    """
    Mint a key and print it, once: only its SHA-256 is kept.

    The key goes to stdout, everything else to stderr. Without a file the entry is printed, to be put into one.

    \b
      pushfleet key new --name billing --scope send --rate 1000 --file keys.json
      pushfleet key new --name console --scope read --scope admin --ttl 90d
    """
    secret = mint_key()
    if rotate:
        if file is None or scopes or rate is not None or quota is not None or ttl is not None:
            raise click.UsageError("--rotate needs --file, and changes nothing but the key: leave the rest away")
        entry = _edit(file, lambda entries: _rotated(entries, name, secret))
    else:
        entry = _entry(name, secret, scopes, rate, quota, ttl)
        if file is not None:
            _edit(file, lambda entries: _added(entries, entry))
    click.echo(json.dumps(entry), err=True)
    where = f"is in {file}" if file else 'goes into the file of keys, {"keys":[...]}'
    click.echo(f"This entry {where}. The key follows and is not shown again.", err=True)
    click.echo(secret)


@key.command("list")
@_FILE
def list_keys(file: Path | None) -> None:
    """Show names, scopes and limits, and the first digits of each key's SHA-256."""
    for entry in _checked(_read(_given(file))):
        digests = ",".join(digest.hex()[:8] for digest in entry.digests())
        expires_s = entry.expires_s()
        limits = [f"rate {entry.rate:g}/s"] if entry.rate is not None else []
        limits += [f"quota {entry.quota}/day"] if entry.quota is not None else []
        if expires_s:
            ending = "expired" if expires_s <= time.time() else "expires"
            limits.append(f"{ending} {_date(expires_s)}")
        if entry.key:
            limits.append("in plain")
        click.echo("  ".join((entry.name, ",".join(entry.scopes), digests, *limits)))


@key.command("remove")
@click.argument("name")
@click.option("--old", is_flag=True, help="Only the keys before the newest; the caller stays.")
@_FILE
def remove(name: str, old: bool, file: Path | None) -> None:
    """Remove a caller: its keys are refused as soon as the dispatchers have read the file, within seconds."""
    _edit(_given(file), lambda entries: _kept_newest(entries, name) if old else _removed(entries, name))
    click.echo(f"{name}: {'the older keys are' if old else 'it is'} removed", err=True)


def _entry(
    name: str, secret: str, scopes: tuple[str, ...], rate: float | None, quota: int | None, ttl: int | None
) -> dict[str, Any]:
    """Raises click.UsageError."""
    fault = name_fault(name)
    if fault:
        raise click.UsageError(f"--name: {fault}")
    if not scopes:
        raise click.UsageError(f"--scope: at least one of {', '.join(SCOPES)}")
    entry: dict[str, Any] = {"name": name, "sha256": digest_of(secret).hex(), "scopes": list(dict.fromkeys(scopes))}
    entry |= {} if rate is None else {"rate": rate}
    entry |= {} if quota is None else {"quota": quota}
    entry |= {} if ttl is None else {"expires": _date(time.time() + ttl)}
    _checked([entry])
    return entry


def _added(entries: Entries, entry: dict[str, Any]) -> dict[str, Any]:
    if any(other.get("name") == entry["name"] for other in entries):
        raise click.ClickException(f"{entry['name']} is there already; --rotate gives it a further key")
    entries.append(entry)
    return entry


def _rotated(entries: Entries, name: str, secret: str) -> dict[str, Any]:
    """The newest digest goes first."""
    entry = _of(entries, name)
    digests = [digest.hex() for digest in _checked([entry])[0].digests()]
    if len(digests) >= MOST_DIGESTS:
        raise click.ClickException(
            f"{name} has {len(digests)} keys; remove the old ones first: key remove {name} --old"
        )
    entry.pop("key", None)
    entry["sha256"] = [digest_of(secret).hex(), *digests]
    return entry


def _kept_newest(entries: Entries, name: str) -> dict[str, Any]:
    entry = _of(entries, name)
    if isinstance(entry.get("sha256"), list):
        entry["sha256"] = entry["sha256"][0]
    return entry


def _removed(entries: Entries, name: str) -> dict[str, Any]:
    entry = _of(entries, name)
    if len(entries) == 1:
        raise click.ClickException(f"{name} is the only one; dispatchers take no file without keys: add another first")
    entries.remove(entry)
    return entry


def _of(entries: Entries, name: str) -> dict[str, Any]:
    for entry in entries:
        if entry.get("name") == name:
            return entry
    raise click.ClickException(f"{name} is not in the file")


# -- the file --------------------------------------------------------------------------------------------------------


def _given(file: Path | None) -> Path:
    if file is None:
        raise click.UsageError("--file or PUSH_API_KEYS: which file of keys?")
    return file


def _checked(entries: Entries) -> list[KeyEntry]:
    """What a dispatcher would make of them. Raises click.ClickException."""
    try:
        return read_keys(json.dumps({"keys": entries}).encode())
    except KeysFault as fault:
        raise click.ClickException(str(fault)) from None


def _read(path: Path) -> Entries:
    """Raises click.ClickException."""
    try:
        text = path.read_bytes()
        read_keys(text)
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    except KeysFault as fault:
        raise click.ClickException(f"{path}: {fault}") from None
    entries: Entries = json.loads(text)["keys"]
    return entries


def _edit(path: Path, change: Callable[[Entries], dict[str, Any]]) -> dict[str, Any]:
    """Change the entries of a file, which need not be there; a reader sees all of the change or nothing."""
    path = path.resolve()  # a link stays one
    try:
        with _locked(path.parent):
            entries = _read(path) if path.exists() else []
            entry = change(entries)
            _checked(entries)
            _replace(path, _text(entries))
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    return entry


def _text(entries: Entries) -> bytes:
    """An entry a line."""
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    return f'{{"keys":[\n{lines}\n]}}\n'.encode()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two commands at the same time go one after the other."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, text: bytes) -> None:
    """
    On the disk before it has the name. A new file is its owner's alone; one that was there keeps its owner and what the
    group may, as the dispatcher may run as somebody else.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            if path.exists():
                was = path.stat()
                if (was.st_uid, was.st_gid) != (os.getuid(), os.getgid()):
                    os.fchown(descriptor, was.st_uid, was.st_gid)
                os.fchmod(descriptor, was.st_mode & 0o660 | 0o600)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _date(epoch_s: float) -> str:
    return datetime.fromtimestamp(int(epoch_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""`pushfleet key`: what it prints, what it writes, and what it leaves alone."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dispatcher.callers import Callers
from dispatcher.key_file import digest_of, load_keys
from pushfleet import keys
from pushfleet.cli import main


def run(*arguments: str, file: Path | None = None) -> Result:
    return CliRunner().invoke(main, ["key", *arguments], env={"PUSH_API_KEYS": None if file is None else str(file)})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def entries(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())["keys"]
    return found


def test_without_a_file_the_entry_is_printed() -> None:
    """The key alone on stdout, so that a shell can take it; its SHA-256 in the entry."""
    result = run("new", "--name", "billing", "--scope", "send", "--rate", "5", "--quota", "9")
    key = result.stdout.strip()
    entry = {"name": "billing", "sha256": digest_of(key).hex(), "scopes": ["send"], "rate": 5.0, "quota": 9}
    assert entry == json.loads(result.stderr.splitlines()[0])
    assert key not in result.stderr


def test_a_new_key_opens_what_it_is_for(file: Path) -> None:
    """A dispatcher takes the file as it stands; the key itself is not in it."""
    key = run("new", "--name", "billing", "--scope", "send", "--scope", "read", "--ttl", "1h", file=file).stdout.strip()
    caller = Callers(load_keys(str(file), least_key=16)).identify(key)
    assert ("billing", frozenset({"send", "read"})) == (caller.name, caller.scopes)
    assert key not in file.read_text()
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)


def test_other_entries_stay_as_they_are(file: Path) -> None:
    """Also those that a person wrote, and what their group may; nothing else is left in the folder."""
    other = {"name": "old", "scopes": ["admin"], "key": "a key for development", "expires": "2030-01-01"}
    file.write_text(json.dumps({"keys": [other]}))
    file.chmod(0o644)
    assert 0 == run("new", "--name", "billing", "--scope", "send", file=file).exit_code
    assert other == entries(file)[0]
    assert ["old", "billing"] == [entry["name"] for entry in entries(file)]
    assert 0o640 == stat.S_IMODE(file.stat().st_mode)
    assert [file] == list(file.parent.iterdir())


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    """What it leads to is replaced."""
    link = tmp_path / "link.json"
    link.symlink_to(file)
    assert 0 == run("new", "--name", "billing", "--scope", "send", file=link).exit_code
    assert link.is_symlink()
    assert "billing" == entries(file)[0]["name"]


def test_a_key_is_replaced_without_a_gap(file: Path) -> None:
    """--rotate: both are good; --old: only the newest is."""
    first = run("new", "--name", "billing", "--scope", "send", file=file).stdout.strip()
    second = run("new", "--name", "billing", "--rotate", file=file).stdout.strip()
    known = Callers(load_keys(str(file)))
    assert known.identify(first) is known.identify(second)
    assert 0 == run("remove", "billing", "--old", file=file).exit_code
    known = Callers(load_keys(str(file)))
    assert (True, True) == (known.find(first) is None, known.find(second) is not None)


def test_a_name_has_four_keys_at_most(file: Path) -> None:
    """The fifth says what to do."""
    run("new", "--name", "billing", "--scope", "send", file=file)
    results = [run("new", "--name", "billing", "--rotate", file=file) for _ in range(4)]
    assert [0, 0, 0, 1] == [result.exit_code for result in results]
    assert "remove billing --old" in results[3].output


def test_list_shows_no_secret(file: Path) -> None:
    """Name, scopes, the beginning of each digest, limits; what is in plain is said and not shown."""
    file.write_text(json.dumps({"keys": [{"name": "dev", "key": "plain-secret", "scopes": ["read"]}]}))
    run("new", "--name", "billing", "--scope", "send", "--rate", "5", "--quota", "9", "--ttl", "1h", file=file)
    text = run("list", file=file).output
    assert "plain-secret" not in text
    plain, minted = text.splitlines()
    assert f"dev  read  {digest_of('plain-secret').hex()[:8]}  in plain" == plain
    digest = entries(file)[1]["sha256"]
    assert f"billing  send  {digest[:8]}  rate 5/s  quota 9/day  expires {entries(file)[1]['expires']}" == minted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new", "--name", "a b", "--scope", "send"], "--name"),
        (["new", "--name", "a"], "--scope"),
        (["new", "--name", "a", "--scope", "sned"], "sned"),
        (["new", "--name", "a", "--scope", "send", "--rate", "0"], "rate"),
        (["new", "--name", "dev", "--scope", "send"], "--rotate gives it a further key"),
        (["new", "--name", "a", "--rotate"], "not in the file"),
        (["new", "--name", "dev", "--rotate", "--scope", "send"], "leave the rest away"),
        (["remove", "a"], "not in the file"),
        (["remove", "dev"], "add another first"),
    ],
)
def test_what_cannot_be_done_changes_nothing(file: Path, arguments: list[str], words: str) -> None:
    """The reason is said, no key is printed, and the file is as it was."""
    text = json.dumps({"keys": [{"name": "dev", "key": "plain-secret", "scopes": ["read"]}]})
    file.write_text(text)
    result = run(*arguments, file=file)
    assert 0 != result.exit_code
    assert words in result.output
    assert "pf_" not in result.output
    assert text == file.read_text()


def test_commands_at_the_same_time_lose_nothing(file: Path) -> None:
    """One goes after the other."""

    def add(number: int) -> None:
        entry = {"name": f"n{number}", "sha256": f"{number:064x}", "scopes": ["send"]}
        keys._edit(file, lambda entries: keys._added(entries, entry))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(add, range(32)))
    assert {f"n{number}" for number in range(32)} == {entry["name"] for entry in entries(file)}


def test_a_bad_file_is_not_overwritten(file: Path) -> None:
    """It may be somebody's work."""
    file.write_text('{"keys":[')
    result = run("new", "--name", "a", "--scope", "send", file=file)
    assert (1, '{"keys":[') == (result.exit_code, file.read_text())
    assert "not JSON" in result.output

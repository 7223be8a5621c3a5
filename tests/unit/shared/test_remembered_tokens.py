"""Tokens that were good are remembered: bounded, for as long as they are good, and no others."""

from __future__ import annotations

from shared.jwks import KeySet
from shared.tokens import TokenVerifier
from tests.harness.tokens import SECRET
from tests.unit.shared.test_tokens import NOW, make, refusal


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def remembering(clock: Clock, most: int = 10) -> TokenVerifier:
    keys = KeySet(SECRET)
    return TokenVerifier(lambda: keys, most=most, now=clock)


def test_a_good_token_is_remembered() -> None:
    """The second time costs no signature, and gives the same."""
    checked, token = remembering(Clock()), make()
    first = checked.verify(token)
    assert 0 == checked.hits
    assert first is checked.verify(token)
    assert 1 == checked.hits


def test_a_remembered_token_expires() -> None:
    """At exp and the leeway, also when it has become one of the older ones."""
    clock = Clock()
    checked, early, late = remembering(clock, most=1), make(exp=NOW + 10), make(exp=NOW + 10, n=1)
    checked.verify(early)
    checked.verify(late)
    clock.now = NOW + 14.9
    assert "alice" == checked.verify(late).client_id
    assert "alice" == checked.verify(early).client_id
    clock.now = NOW + 15.0
    assert "expired" in refusal(checked, late)
    assert "expired" in refusal(checked, early)


def test_a_token_before_its_time_is_not_remembered() -> None:
    """Neither as bad nor as good: refused until nbf, then taken."""
    clock = Clock()
    checked, token = remembering(clock), make(nbf=NOW + 20)
    for _ in range(2):
        assert "nbf" in refusal(checked, token)
    assert 0 == checked.remembered
    clock.now = NOW + 15.0
    assert "alice" == checked.verify(token).client_id


def test_no_more_are_remembered_than_may_be() -> None:
    """Those that were seen last stay."""
    checked, tokens = remembering(Clock(), most=10), [make(n=n) for n in range(100)]
    for token in tokens:
        checked.verify(tokens[0])
        checked.verify(token)
        assert checked.remembered <= 20
    hits = checked.hits
    for token in (tokens[0], *tokens[90:]):
        checked.verify(token)
    assert 11 == checked.hits - hits


def test_a_flood_of_bad_tokens_pushes_nobody_out() -> None:
    """Only good ones are remembered."""
    checked, good = remembering(Clock(), most=4), [make(n=n) for n in range(4)]
    for token in good:
        checked.verify(token)
    for number in range(200):
        refusal(checked, make(n=number)[:-4] + "AAAA")
        refusal(checked, make(sub="not a client", n=number))
        refusal(checked, f"x.{number}.y")
    for token in good:
        checked.verify(token)
    assert (4, 4) == (checked.hits, checked.remembered)


def test_another_set_of_keys_forgets_all() -> None:
    """What an old key has signed is not good for longer than the key."""
    sets = [KeySet(SECRET)]
    checked, token = TokenVerifier(lambda: sets[-1]), make()
    checked.verify(token)
    sets.append(KeySet("t" * 32))
    refusal(checked, token)

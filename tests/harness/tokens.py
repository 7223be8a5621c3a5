"""Verifiers of connect tokens, without the files and URLs that keys come from."""

from __future__ import annotations

from shared.tokens import KeySet, TokenVerifier


def verifier_of(secret: str) -> TokenVerifier:
    """Over one secret."""
    keys = KeySet(secret)
    return TokenVerifier(lambda: keys)

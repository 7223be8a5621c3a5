"""
The signature that brokers with ACL (authentication) ask for.

`Signature` = base64(HMAC-SHA1(secret, all other ext fields' values in the order of their names, then the body)),
as RocketMQ's own clients compute it. It proves who asks; it hides nothing (that is TLS's part).
"""

from __future__ import annotations

import hmac
from base64 import b64encode


class Signer:
    """Adds the access key and the signature to a request's fields."""

    __slots__ = ("_access_key", "_secret")

    def __init__(self, access_key: str, secret_key: str) -> None:
        self._access_key = access_key
        self._secret = secret_key.encode()

    def sign(self, fields: dict[str, str], body: bytes) -> dict[str, str]:
        """The fields with `AccessKey` and `Signature`; the ones given are left as they are."""
        signed = {**fields, "AccessKey": self._access_key}
        content = "".join([signed[name] for name in sorted(signed)]).encode() + body
        signed["Signature"] = b64encode(hmac.digest(self._secret, content, "sha1")).decode()
        return signed

"""A person: a client as other clients see it. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Person:
    """`name` is "" when it never gave one; `online`: it has a session."""

    client_id: str
    name: str
    online: bool

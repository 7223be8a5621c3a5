"""Origins of browsers' pages (RFC 6454) and the patterns that allow them. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def origin_patterns(text: str) -> tuple[str, ...]:
    """Comma separated patterns, `*` for one whole label of the host. Raises ValueError with what is expected."""
    patterns = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for pattern in patterns:
        if "://" not in pattern or pattern.endswith("/"):
            raise ValueError("expected origins like https://app.example.com,https://*.example.com")
    return patterns


def is_allowed(origin: str, patterns: Sequence[str]) -> bool:
    """Whether an Origin is one of the patterns'."""
    return any(origin_matches(origin, pattern) for pattern in patterns)


def origin_matches(origin: str, pattern: str) -> bool:
    """Whether an Origin is the pattern's; `*` stands for one whole label of the host."""
    scheme, _, host = origin.lower().partition("://")
    wanted_scheme, _, wanted_host = pattern.partition("://")
    labels, wanted = host.split("."), wanted_host.split(".")
    if scheme != wanted_scheme or len(labels) != len(wanted):
        return False
    return all(want in (label, "*") for label, want in zip(labels, wanted, strict=True))

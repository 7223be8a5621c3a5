"""`python -m pushfleet` is the `pushfleet` command."""

from __future__ import annotations

from pushfleet.cli import main

if __name__ == "__main__":
    main()

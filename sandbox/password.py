"""Passwords of the sandbox and the tests: each begins alike, so that a search finds any that got out."""

from __future__ import annotations

import secrets

MARK = "hUsh7" + "hUsh"
"""Stands nowhere else. Letters and digits only: a URL quotes none of them. Not in one piece: hypothesis tries strings
that it finds in our sources."""


def new_password() -> str:
    """Make a password that nobody guesses."""
    return MARK + secrets.token_urlsafe(18)

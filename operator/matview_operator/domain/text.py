"""What characters a tenant id or correlation id may hold."""

from __future__ import annotations

import unicodedata

_UNPRINTABLE = {"Cc", "Cf", "Co", "Cs"}
"""Without unassigned code points: the API server's Unicode tables may be newer than Python's."""


def is_printable(text: str) -> bool:
    """Tell whether a text holds no control, format, private-use or surrogate characters."""
    return not any(unicodedata.category(character) in _UNPRINTABLE for character in text)

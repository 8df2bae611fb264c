"""What characters a tenant id or correlation id may hold, and what becomes of others' texts before they are shown."""

from __future__ import annotations

import unicodedata

_UNPRINTABLE = {"Cc", "Cf", "Co", "Cs"}
"""Without unassigned code points: the API server's Unicode tables may be newer than Python's."""


def is_printable(text: str) -> bool:
    """Tell whether a text holds no control, format, private-use or surrogate characters."""
    return not any(unicodedata.category(character) in _UNPRINTABLE for character in text)


def shown(text: str, *, size: int) -> str:
    """Make anybody's text fit for a status, an event, a log or the ledger: at most `size` bytes of UTF-8, one line.

    A line break becomes a blank, and any other unprintable character U+FFFD: a NUL no text column can hold, and escape
    sequences or marks of direction would have a terminal show something else.
    """
    # Cut first: a hostile server's text may have a gigabyte. A character takes one byte at least.
    cut = text[:size]
    if cut.isascii() and cut.isprintable():
        return cut  # as nearly all are
    whole = "".join(map(_visible, cut))
    return whole.encode()[:size].decode(errors="ignore")


def _visible(character: str) -> str:
    if character in "\n\r\t":
        return " "
    return "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) in _UNPRINTABLE else character

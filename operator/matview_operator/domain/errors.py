"""The one exception base, and the errors that people can mend."""


class MatviewError(Exception):
    """Base of every error that this project raises on purpose. Its text never holds a password or a DSN."""


class InvalidName(MatviewError):  # noqa: N818 - reads as the fact it states
    """A view name that PostgreSQL could not mean."""

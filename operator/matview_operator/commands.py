"""What all commands share: how they name a database, and how they tell errors."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from matview_operator.domain.errors import InvalidName, InvalidRequest, InvalidTarget, MatviewError
from matview_operator.domain.guard import guard_of
from matview_operator.domain.view import name_from_sql

URL_VARIABLE = "DATABASE_URL"

_CREDENTIALS = re.compile("://(?!user:password@).*@")
"""Up to the last @, which a password may hold too. Our own messages show the form of a URL."""

_INTERRUPTED = 130


class Command(click.Command):
    """A command whose expected errors are told in a sentence, not by a trace."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; raises UsageError for arguments that make no sense, ClickException for what did not work."""
        try:
            return super().invoke(ctx)
        except (InvalidName, InvalidRequest, InvalidTarget) as error:
            raise click.UsageError(str(error), ctx) from None
        except MatviewError as error:
            raise click.ClickException(str(error)) from None


class Commands(click.Group):
    """A group of such commands."""

    command_class = Command


def run_safely(command: click.Command) -> int:
    """Run a command line and return its exit code. No error shows a password, wherever the user wrote one."""
    try:
        code = command.main(standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(_CREDENTIALS.sub("://…@", shown.getvalue()), err=True, nl=False)
        return error.exit_code
    except click.Abort:
        return _INTERRUPTED
    return code if isinstance(code, int) else 0


def setting(*names: str, **attributes: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option over the environment variable of settings.py; click is not to look for one of its own."""
    return click.option(*names, allow_from_autoenv=False, **attributes)


def verbose_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --verbose-errors."""
    option = click.option(
        "--verbose-errors",
        is_flag=True,
        envvar="MATVIEW_VERBOSE_ERRORS",
        allow_from_autoenv=False,
        help="Repeat what the server says of an error inside a view's query; it may hold rows. "
        "[env: MATVIEW_VERBOSE_ERRORS]",
    )
    return option(command)


def with_database(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the two options that name the database."""
    for option in (
        click.option(
            "--database-url-file",
            metavar="FILE",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A file that holds the database's URL and nothing else; only you should be able to read it.",
        ),
        click.option(
            "--database-url",
            metavar="URL",
            envvar=URL_VARIABLE,
            help="postgresql://user:password@host:port/database?sslmode=verify-full. With a password in it, prefer "
            f"the environment variable {URL_VARIABLE} or --database-url-file: every user of the machine can see a "
            "command's arguments.",
        ),
    ):
        command = option(command)
    return command


def with_guard(command: Callable[..., None]) -> Callable[..., None]:
    """Add the three options of a guard; the command gets them as one argument, `guard`."""

    @functools.wraps(command)
    def guarded(
        *, min_rows: int | None, max_row_loss_percent: int | None, keep_tenants: str | None, **rest: Any
    ) -> None:
        column = None if keep_tenants is None else name_from_sql(keep_tenants, kind="column")
        guard = guard_of(min_rows=min_rows, max_row_loss_percent=max_row_loss_percent, keep_tenants=column)
        command(guard=guard, **rest)

    for option in (
        click.option(
            "--keep-tenants",
            metavar="COLUMN",
            help="Reject a refresh after which a value of this column is gone from the view.",
        ),
        click.option(
            "--max-row-loss-percent",
            metavar="PERCENT",
            type=int,
            help="Reject a refresh after which the view has lost more of its rows, 0 to 99.",
        ),
        click.option(
            "--min-rows",
            metavar="ROWS",
            type=int,
            help="Reject a refresh after which the view has fewer rows: all is rolled back, and nobody sees them.",
        ),
    ):
        guarded = option(guarded)
    return guarded


def url_of(database_url: str | None, database_url_file: Path | None) -> str:
    """Return the URL that the options or the environment name; raises UsageError."""
    if database_url_file is not None:
        if click.get_current_context().get_parameter_source("database_url") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--database-url and --database-url-file exclude each other.")
        try:
            return database_url_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise click.UsageError(f"The file {database_url_file} cannot be read as text.") from None
    if not database_url:
        raise click.UsageError(f"Which database? Set {URL_VARIABLE}, or give --database-url-file.")
    return database_url

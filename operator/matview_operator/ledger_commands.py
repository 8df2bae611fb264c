"""The commands about the ledger."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from matview_operator import examples
from matview_operator.commands import Command, url_of, with_database


@click.command(cls=Command, epilog=examples.MIGRATE)
@with_database
@click.option("--grant-to", metavar="ROLE", multiple=True, help="Role that may use the ledger; may be repeated.")
@click.option("--down", is_flag=True, help="Remove the schema and every run recorded in it.")
@click.option("--check", is_flag=True, help="Change nothing; exit 0 if this role can use the ledger, else 1.")
def migrate(
    *, database_url: str | None, database_url_file: Path | None, grant_to: tuple[str, ...], down: bool, check: bool
) -> None:
    """Install the ledger in a database, or bring it up to date.

    The ledger is the table refresh_run in a schema of its own, matview_ops, and makes the work of every slot and every
    correlation id happen exactly once. It needs a role that may create a schema in the database; the role that
    refreshes is granted its use only. Repeating the command does no harm.
    """
    from matview_operator.adapters.postgres import migrations

    if down + check + bool(grant_to) > 1:
        raise click.UsageError("--grant-to, --down and --check exclude each other.")
    url = url_of(database_url, database_url_file)
    if check:
        found = asyncio.run(migrations.check(url))
        click.echo(found.value)
        click.get_current_context().exit(0 if found.value == "Installed" else 1)
    if down:
        asyncio.run(migrations.downgrade(url))
        click.echo("The schema matview_ops is gone, and with it every recorded run.")
        return
    asyncio.run(migrations.upgrade(url, grant_to=grant_to))
    click.echo("The ledger is installed and up to date.")
    for role in grant_to:
        click.echo(f"{role} may use it.")


@click.command(cls=Command, epilog=examples.PRUNE)
@with_database
@click.option(
    "--keep-days", metavar="DAYS", type=click.IntRange(1, 36_500), default=30, show_default=True, help="What stays."
)
def prune(*, database_url: str | None, database_url_file: Path | None, keep_days: int) -> None:
    """Delete this role's old runs from the ledger.

    The operator does so every day by itself. A correlation id whose run was deleted does its work once more.
    """
    from matview_operator.adapters.postgres.retention import LedgerPruner
    from matview_operator.domain.connection import parse_url

    target = parse_url(url_of(database_url, database_url_file))
    deleted = asyncio.run(LedgerPruner().prune(target=target, keep_days=keep_days, allow_superuser=True))
    if deleted is None:
        raise click.ClickException("There is no ledger that this role can use; `matview-operator migrate --check`.")
    click.echo(f"{deleted:,} runs deleted.")

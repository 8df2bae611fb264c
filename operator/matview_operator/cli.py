"""The command line. Each command imports what it needs when it runs: `--help` is quick, and only `run` loads kopf."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import click

from matview_operator import examples
from matview_operator.commands import Commands, run_safely, setting, url_of, verbose_errors, with_database, with_guard
from matview_operator.ledger_commands import migrate, prune

ISOLATIONS = ("Shared", "Tenant")
CONCURRENTLY = ("IfPossible", "Always", "Never")


@click.group(cls=Commands, context_settings={"auto_envvar_prefix": "MATVIEW", "max_content_width": 100})
def cli() -> None:
    """Keep PostgreSQL materialized views fresh.

    `run` is the Kubernetes operator; the other commands need no Kubernetes. Every option can also be set by an
    environment variable: refresh --timeout by MATVIEW_REFRESH_TIMEOUT.
    """


def main() -> None:
    """Run the command that the process was started with, and exit."""
    sys.exit(run_safely(cli))


@cli.command(epilog=examples.RUN)
@setting(
    "--namespace",
    "namespaces",
    metavar="NAME",
    multiple=True,
    help="Namespace to serve; may be repeated. All namespaces if none is given. [env: MATVIEW_NAMESPACES=a,b]",
)
@setting(
    "--allowed-host",
    "allowed_hosts",
    metavar="HOST",
    multiple=True,
    help="Host name (or *.example), address or network of databases to connect to although it is loopback, link-local "
    "or the API server's; may be repeated. [env: MATVIEW_ALLOWED_HOSTS=a,b]",
)
@setting(
    "--host",
    help="Address of /metrics, /healthz and /readyz. [env: MATVIEW_HOST; default: 0.0.0.0]",
)
@setting(
    "--port",
    type=int,
    help="Port of /metrics, /healthz and /readyz. [env: MATVIEW_PORT; default: 8080]",
)
@setting(
    "--max-concurrent-refreshes",
    type=int,
    help="Refreshes at once over all databases. [env: MATVIEW_MAX_CONCURRENT_REFRESHES; default: 32]",
)
@setting(
    "--idle-connection-seconds",
    type=float,
    help="Seconds a connection waits for the next refresh. [env: MATVIEW_IDLE_CONNECTION_SECONDS; default: 5]",
)
@setting(
    "--ledger-keep-days",
    type=int,
    help="After how many days the ledger forgets a run. [env: MATVIEW_LEDGER_KEEP_DAYS; default: 30]",
)
@setting(
    "--shutdown-grace-seconds",
    type=float,
    help="How long SIGTERM lets refreshes end before it stops them. [env: MATVIEW_SHUTDOWN_GRACE_SECONDS; default: 20]",
)
@setting(
    "--leader-elect/--no-leader-elect",
    default=None,
    help="Work only while holding a Lease, and stand by otherwise. [env: MATVIEW_LEADER_ELECT; default: no]",
)
@setting(
    "--lease-name",
    metavar="NAME",
    help="The Lease's name. [env: MATVIEW_LEASE_NAME; default: matview-operator]",
)
@setting(
    "--lease-namespace",
    metavar="NAME",
    help="The Lease's namespace. [env: MATVIEW_LEASE_NAMESPACE; default: the pod's own]",
)
@setting(
    "--shard-count",
    type=int,
    help="Operators among which the databases are divided. [env: MATVIEW_SHARD_COUNT; default: 1]",
)
@setting(
    "--shard-index",
    type=int,
    help="Which of them this is, from 0. [env: MATVIEW_SHARD_INDEX; default: the number that ends the host's name]",
)
@setting(
    "--log-level",
    type=click.Choice(("DEBUG", "INFO", "WARNING", "ERROR"), case_sensitive=False),
    help="What is logged at least. [env: MATVIEW_LOG_LEVEL; default: INFO]",
)
@setting(
    "--log-format",
    type=click.Choice(("json", "text")),
    help="json for machines, text for a terminal. [env: MATVIEW_LOG_FORMAT; default: json]",
)
@verbose_errors
def run(**options: Any) -> None:
    """Run the operator until SIGTERM.

    It takes its credentials for Kubernetes from KUBECONFIG if that is set, else from the pod's ServiceAccount. An
    option wins over its environment variable.
    """
    from pydantic import ValidationError

    from matview_operator.logs import configure_logs
    from matview_operator.main import run_operator
    from matview_operator.settings import Settings

    try:
        settings = Settings(**{name: value for name, value in options.items() if value not in (None, ())})
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
            for detail in error.errors(include_url=False, include_input=False)
        )
        raise click.UsageError(f"{wrong}. See the options of `run`, or their MATVIEW_ environment variables.") from None
    configure_logs(settings)
    run_operator(settings)


@cli.command(epilog=examples.REFRESH)
@click.argument("views", metavar="[VIEW]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every materialized view that the role may refresh.")
@with_database
@click.option("--tenant", metavar="ID", help="The tenant; under isolation Shared it is a label only.")
@click.option(
    "--isolation",
    type=click.Choice(ISOLATIONS, case_sensitive=False),
    metavar="|".join(ISOLATIONS),
    default="Shared",
    show_default=True,
    help="Shared: the views hold many tenants' rows, and a refresh fails rather than lose any. Tenant: they are this "
    "tenant's alone, and their queries find its id in the setting app.current_tenant_id.",
)
@click.option(
    "--concurrently",
    type=click.Choice(CONCURRENTLY, case_sensitive=False),
    metavar="|".join(CONCURRENTLY),
    default="IfPossible",
    show_default=True,
    help="Whether readers go on reading meanwhile; a view needs a unique index for it.",
)
@click.option("--timeout", metavar="SECONDS", type=float, default=3600.0, show_default=True, help="For each view.")
@with_guard
@click.option(
    "--search-path",
    metavar="SCHEMA",
    multiple=True,
    help="On PostgreSQL 15 and 16: a schema in which functions that views call may find names without one; may be "
    "repeated.",
)
@click.option("--correlation-id", metavar="ID", help="Do this work once only; it is the id in results and logs too.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
    help="json is one array with the results.",
)
@verbose_errors
def refresh(
    *,
    views: tuple[str, ...],
    every: bool,
    database_url: str | None,
    database_url_file: Path | None,
    tenant: str | None,
    isolation: str,
    concurrently: str,
    timeout: float,
    guard: Any,
    search_path: tuple[str, ...],
    correlation_id: str | None,
    output: str,
    verbose_errors: bool,
) -> None:
    """Refresh materialized views now, under the operator's locks.

    VIEW is written as in SQL: daily_revenue, finance.costs, '"Odd Name"'. Views are refreshed one after another; with
    --all each comes after those it reads, and is skipped if one of them failed. A view that somebody else is
    refreshing is skipped.

    With a correlation id, and the ledger that `migrate` installs, the work is done exactly once, however often the
    command is repeated or killed, so that it is safe in a retry loop. Else every call refreshes.

    The exit code is 0 if every view was refreshed or skipped (the outcomes tell which), 1 if one failed, 2 if the
    command makes no sense. Ctrl-C and SIGTERM stop the server's work too, and what was done is printed; the exit code
    is 130 or 143 then.
    """
    from matview_operator.api.policy import Isolation
    from matview_operator.api.view import Concurrently
    from matview_operator.domain.connection import parse_url
    from matview_operator.domain.result import FAILURES
    from matview_operator.domain.view import ViewName, name_from_sql
    from matview_operator.executor import new_request, refresh_all, refresh_in_order
    from matview_operator.interruption import collect

    if every == bool(views):
        raise click.UsageError("Name the views to refresh, or give --all.")
    names = [ViewName.from_sql(view) for view in views]
    target = parse_url(url_of(database_url, database_url_file))
    request = new_request(
        tenant_id=tenant,
        correlation_id=correlation_id,
        isolation=Isolation(isolation),
        concurrently=Concurrently(concurrently),
        timeout_seconds=timeout,
        idempotent=correlation_id is not None,
        verbose_errors=verbose_errors,
        guard=guard,
        search_path=[name_from_sql(schema, kind="schema") for schema in search_path],
    )
    work = (
        refresh_all(target=target, request=request)
        if every
        else refresh_in_order(names, reads={}, target=target, request=request)
    )
    done = asyncio.run(collect(work))
    if output == "json":
        click.echo(json.dumps([result.model_dump(mode="json") for result in done.results], indent=2))
    elif done.results:
        from matview_operator.result_table import print_table

        print_table(done.results)
    if done.error is not None:
        raise done.error
    if done.signal is not None:
        click.get_current_context().exit(128 + done.signal)
    if any(result.outcome in FAILURES for result in done.results):
        click.get_current_context().exit(1)


cli.add_command(migrate)
cli.add_command(prune)


@cli.command(epilog=examples.LOCK_KEYS)
@click.argument("view", metavar="VIEW")
@click.option(
    "--tenant", metavar="ID", help="The tenant under isolation Tenant; without it the key of GLOBAL is shown."
)
def lock_keys(*, view: str, tenant: str | None) -> None:
    """Print a view's advisory lock, for jobs of your own.

    Who holds it keeps refreshes out. It is a transaction's lock, which ends with COMMIT or ROLLBACK.
    """
    from matview_operator.domain.lock_keys import lock_keys as keys_of
    from matview_operator.domain.view import ViewName

    keys = keys_of(str(ViewName.from_sql(view)), tenant)
    click.echo(f"view_key    {keys.view_key}")
    click.echo(f"tenant_key  {keys.tenant_key}")
    click.echo(f"SELECT pg_try_advisory_xact_lock({keys.view_key}, {keys.tenant_key});")


@cli.command(epilog=examples.CRDS)
def crds() -> None:
    """Print the CustomResourceDefinitions as YAML."""
    from matview_operator.api.crd import crds_yaml

    click.echo(crds_yaml(), nl=False)


@cli.command(epilog=examples.VERSION)
def version() -> None:
    """Print the version."""
    from matview_operator import __version__

    click.echo(__version__)

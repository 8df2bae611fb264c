"""The reference application: base tables and views in schema public, roles in the cluster. Needs a superuser.

It is an example, and material for the demo, the tests and the benchmarks; the operator needs nothing of it.
"""

from alembic.util import CommandError
from sqlalchemy import Connection, text

from matview_operator.adapters.postgres.migration_environment import Section, run

_ME = text("""
    select current_user::text as name, r.rolsuper as superuser
    from pg_catalog.pg_roles r where r.rolname = current_user
""")


def prepare(connection: Connection) -> None:
    """See that the roles can be made: on PostgreSQL 15 only a superuser may give BYPASSRLS away."""
    me = connection.execute(_ME).one()
    if not me.superuser:
        raise CommandError(f"The reference application's roles need a superuser to create them; {me.name} is none.")


def finish(connection: Connection) -> None:
    """Leave nothing behind in the database."""
    connection.execute(text("drop table public.alembic_version_reference"))


run(
    Section(
        version_table="alembic_version_reference",
        version_table_schema="public",
        prepare=prepare,
        finish=finish,
    )
)

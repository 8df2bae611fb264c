"""Bookkeeping: everything lies in the schema matview_ops, its version table too.

Any role with CREATE on the database may install it, and owns it then.
"""

from alembic.util import CommandError
from sqlalchemy import Connection, text

from matview_operator.adapters.postgres.migration_environment import Section, run

SCHEMA = "matview_ops"

# Membership is asked for, not equality: a superuser, or a member of the owner's role, may go on with its work.
_FOUND = text("""
    select r.rolname::text as owner, current_user::text as me,
           pg_catalog.pg_has_role(n.nspowner, 'USAGE') as may_change,
           exists (select from pg_catalog.pg_class c where c.relnamespace = n.oid
                   and c.relname = 'alembic_version' and c.relkind = 'r') as versioned,
           exists (select from pg_catalog.pg_class c where c.relnamespace = n.oid)
             or exists (select from pg_catalog.pg_proc p where p.pronamespace = n.oid) as used
    from pg_catalog.pg_namespace n join pg_catalog.pg_roles r on r.oid = n.nspowner
    where n.nspname = 'matview_ops'
""")
_MAY_CREATE = text("""
    select pg_catalog.has_database_privilege(d.datname, 'CREATE') as yes,
           d.datname::text as database, current_user::text as me
    from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()
""")


def prepare(connection: Connection) -> None:
    """Make the schema, or see that the one that exists is ours."""
    found = connection.execute(_FOUND).one_or_none()
    if found is None:
        may_create = connection.execute(_MAY_CREATE).one()
        if not may_create.yes:
            raise CommandError(
                f"The role {may_create.me} may not create schemas in the database {may_create.database}. "
                "Migrate as its owner or another role with CREATE on it."
            )
        connection.execute(text("create schema matview_ops"))
        connection.execute(text("comment on schema matview_ops is 'The ledger of matview-operator'"))
    elif not found.may_change:
        raise CommandError(
            f"The schema {SCHEMA} exists and belongs to the role {found.owner}. "
            f"Migrate as that role or a member of it; {found.me} is none."
        )
    elif found.used and not found.versioned:
        raise CommandError(
            f"The schema {SCHEMA} exists (owner: {found.owner}) and holds something that matview-operator "
            "did not make. Nothing was changed. Rename or drop that schema first."
        )


def finish(connection: Connection) -> None:
    """Leave nothing behind. Without CASCADE: what others put into the schema stops the downgrade instead."""
    connection.execute(text("drop table matview_ops.alembic_version"))
    connection.execute(text("drop schema matview_ops"))


run(Section(version_table="alembic_version", version_table_schema=SCHEMA, prepare=prepare, finish=finish))

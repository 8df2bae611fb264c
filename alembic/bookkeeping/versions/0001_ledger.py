"""The ledger: one row per run that was settled or failed, and prune(), which forgets old rows.

A slot is refreshed exactly once because of refresh_run_settled: the row of a success is written in the refresh's own
transaction, and a second success of one slot violates that key. Each role sees only its own rows as its own:
recorded_by is filled in by the server, and no role is granted INSERT on it.
"""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
        create table matview_ops.refresh_run (
          run_id         bigint      generated always as identity primary key,
          recorded_by    name        not null default session_user,
          policy_uid     uuid        not null,
          view_oid       oid         not null,
          view_name      text        not null,
          slot_id        text        not null check (slot_id ~ '^(slot|request):'),
          due_at         timestamptz,
          attempt        smallint    not null default 1,
          outcome        text        not null check (outcome in
                           ('SUCCESS', 'FAILED', 'SKIPPED_UNCHANGED', 'REJECTED_BY_GUARD', 'INTERRUPTED')),
          settles        boolean     generated always as (outcome in ('SUCCESS', 'SKIPPED_UNCHANGED')) stored,
          lock_token     text        not null,
          data_as_of     timestamptz not null,
          finished_at    timestamptz not null default pg_catalog.clock_timestamp(),
          mode           text        check (mode in ('Concurrent', 'Blocking')),
          rows_inserted  bigint,
          rows_deleted   bigint,
          rows_total     bigint,
          reason         text,
          sqlstate       text,
          message        text        check (octet_length(message) <= 1024),
          correlation_id text        not null
        )
    """)
    op.execute("""
        comment on column matview_ops.refresh_run.recorded_by is
        'The role that recorded the run. Nobody is granted INSERT on it, so that it cannot be forged.'
    """)
    op.execute("""
        comment on column matview_ops.refresh_run.policy_uid is
        'The policy; for the command line a UUID made from isolation and lock_token.'
    """)
    op.execute("""
        comment on column matview_ops.refresh_run.slot_id is 'slot:<instant> of a schedule, or request:<token>.'
    """)
    op.execute("""
        comment on column matview_ops.refresh_run.due_at is
        'When the slot was due, on the clock of the server; null for a request.'
    """)
    op.execute("comment on column matview_ops.refresh_run.lock_token is 'GLOBAL, or the tenant id.'")
    op.execute("""
        comment on column matview_ops.refresh_run.data_as_of is
        'The clock of the server just before REFRESH started: what the rows reflect.'
    """)
    op.execute("""
        create unique index refresh_run_settled
        on matview_ops.refresh_run (recorded_by, policy_uid, view_oid, slot_id) where settles
    """)
    op.execute("""
        create index refresh_run_cover
        on matview_ops.refresh_run (view_oid, lock_token, data_as_of desc) where outcome = 'SUCCESS'
    """)
    op.execute("create index refresh_run_attempts on matview_ops.refresh_run (policy_uid, view_oid, slot_id)")
    op.execute("create index refresh_run_age on matview_ops.refresh_run (finished_at)")

    # Runs as the ledger's owner, so that no role needs DELETE. session_user stays the caller's under it. now(), not
    # clock_timestamp(): a volatile function would keep refresh_run_age from being used.
    op.execute("""
        create function matview_ops.prune(keep interval) returns bigint
        language sql volatile strict security definer set search_path = pg_catalog, pg_temp
        begin atomic
          with gone as (
            delete from matview_ops.refresh_run r
            where r.recorded_by = session_user and r.finished_at < now() - greatest(prune.keep, interval '1 day')
            returning r.run_id)
          select count(*) from gone;
        end
    """)
    op.execute("""
        comment on function matview_ops.prune(interval) is
        'Deletes the caller''s rows that are older than keep, and than a day in any case; returns their number.'
    """)
    # The owner's default privileges may have granted some of this to everybody.
    op.execute("revoke all on function matview_ops.prune(interval) from public")
    op.execute("revoke all on table matview_ops.refresh_run from public")


def downgrade() -> None:
    op.execute("drop function matview_ops.prune(interval)")
    op.execute("drop table matview_ops.refresh_run")

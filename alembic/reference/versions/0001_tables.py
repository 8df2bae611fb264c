"""Revenue attribution for many tenants: roles, and base tables under row-level security.

No role is a superuser. Roles belong to the cluster, so they are created if absent and never dropped, and none can log
in until somebody gives it LOGIN and a password.

  analytics_owner     owns the tables. FORCE ROW LEVEL SECURITY binds it too. Member of analytics_views.
  analytics_views     owns the views of the next revision and nothing else, and reads the tables. REFRESH rebuilds a
                      view for all tenants as its owner; under row-level security it would keep one tenant's rows only,
                      or none: hence BYPASSRLS.
  analytics_app       the application: reads and writes the rows of one tenant, the one of app.current_tenant_id.
  analytics_operator  refreshes the views and can do nothing else. On PostgreSQL 17 and later it has MAINTAIN on them;
                      on 15 and 16 only the owner may refresh, so it is a member of analytics_views there.
"""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_roles()
    _create_tables()
    _isolate_tenants()
    _keep_workers_from_ingestion()
    _grant()


def downgrade() -> None:
    op.execute("""
        drop table public.reconciliation_runs, public.revenue_ledger, public.attribution_allocations,
          public.attribution_events, public.channel_taxonomy, public.tenants
    """)
    op.execute("drop function public.refuse_worker_writes()")
    op.execute("revoke all on schema public from analytics_owner, analytics_app")
    op.execute("""
        do $$ begin
          execute format('revoke all on database %I from analytics_owner, analytics_app', current_database());
        end $$
    """)


def _create_roles() -> None:
    # Upgrades of two databases of one cluster race for the roles. pg_authid is shared by all databases: whoever comes
    # second waits here and then finds the roles made. Logging in only reads it and does not wait.
    op.execute("lock table pg_catalog.pg_authid in share row exclusive mode")
    op.execute("""
        do $$
        declare
          needed constant text[] := array['analytics_owner', 'analytics_views', 'analytics_app', 'analytics_operator'];
          wanted text;
        begin
          foreach wanted in array needed loop
            if not exists (select from pg_roles where rolname = wanted) then
              execute format('create role %I nologin', wanted)
                || case when wanted = 'analytics_views' then ' bypassrls' else '' end;
            end if;
          end loop;
          if exists (select from pg_roles where rolname = any (needed)
                     and (rolsuper or rolbypassrls <> (rolname = 'analytics_views'))) then
            raise exception 'a role of the reference application exists with other attributes'
              using detail = 'None is a superuser, and analytics_views alone has BYPASSRLS.';
          end if;
          grant analytics_views to analytics_owner;
          -- Inheriting is what REFRESH needs; SET ROLE would let the operator read every tenant's rows.
          if current_setting('server_version_num')::int between 160000 and 169999 then
            execute 'grant analytics_views to analytics_operator with inherit true, set false';
          elsif current_setting('server_version_num')::int < 160000 then
            grant analytics_views to analytics_operator;
          end if;
        end $$
    """)


def _create_tables() -> None:
    op.execute("""
        create table public.tenants (
          tenant_id  uuid primary key default gen_random_uuid(),
          name       text not null unique,
          currency   text not null check (currency ~ '^[A-Z]{3}$'),
          created_at timestamptz not null default now()
        )
    """)
    op.execute("""
        create table public.channel_taxonomy (
          channel_code text primary key,
          display_name text not null,
          is_paid      boolean not null
        )
    """)
    op.execute("""
        insert into public.channel_taxonomy (channel_code, display_name, is_paid) values
          ('search_paid', 'Paid search', true), ('search_organic', 'Organic search', false),
          ('social_paid', 'Paid social', true), ('social_organic', 'Organic social', false),
          ('display', 'Display advertising', true), ('affiliate', 'Affiliates', true),
          ('email', 'E-mail', false), ('direct', 'Direct', false)
    """)
    op.execute("""
        create table public.attribution_events (
          tenant_id     uuid not null references public.tenants,
          event_id      uuid not null default gen_random_uuid(),
          channel_code  text not null references public.channel_taxonomy,
          event_type    text not null check (event_type in ('visit', 'lead', 'purchase')),
          revenue_cents bigint not null default 0 check (revenue_cents >= 0),
          occurred_at   timestamptz not null,
          primary key (tenant_id, event_id)
        )
    """)
    # Old events are purged; what was allocated for them stays, without an event.
    op.execute("""
        create table public.attribution_allocations (
          tenant_id        uuid not null references public.tenants,
          allocation_id    uuid not null default gen_random_uuid(),
          event_id         uuid,
          model_version    text not null,
          channel_code     text not null references public.channel_taxonomy,
          allocated_cents  bigint not null,
          confidence_score numeric(4, 3) not null check (confidence_score between 0 and 1),
          allocated_at     timestamptz not null,
          primary key (tenant_id, allocation_id),
          foreign key (tenant_id, event_id) references public.attribution_events on delete set null (event_id)
        )
    """)
    op.execute("create index on public.attribution_allocations (tenant_id, event_id)")
    op.execute("""
        create table public.revenue_ledger (
          tenant_id    uuid not null references public.tenants,
          entry_id     uuid not null default gen_random_uuid(),
          state        text not null check (state in ('authorized', 'captured', 'refunded', 'chargeback')),
          currency     text not null check (currency ~ '^[A-Z]{3}$'),
          amount_cents bigint not null check (amount_cents >= 0),
          is_verified  boolean not null default false,
          booked_at    timestamptz not null,
          primary key (tenant_id, entry_id)
        )
    """)
    op.execute("""
        create table public.reconciliation_runs (
          tenant_id   uuid not null references public.tenants,
          run_id      uuid not null default gen_random_uuid(),
          state       text not null check (state in ('running', 'balanced', 'drifted', 'failed')),
          last_run_at timestamptz not null,
          primary key (tenant_id, run_id)
        )
    """)


def _isolate_tenants() -> None:
    # nullif: a setting that was SET LOCAL before on the connection reads as '', which is no uuid.
    op.execute("""
        do $$
        declare
          name text;
        begin
          foreach name in array array['tenants', 'attribution_events', 'attribution_allocations', 'revenue_ledger',
                                      'reconciliation_runs'] loop
            execute format('alter table public.%I enable row level security, force row level security', name);
            execute format('create policy tenant_isolation on public.%I using '
              '(tenant_id = nullif(current_setting(''app.current_tenant_id'', true), '''')::uuid)', name);
          end loop;
        end $$
    """)


def _keep_workers_from_ingestion() -> None:
    # Allocations and reconciliation runs are the workers' own results; events and revenue come from outside.
    op.execute("""
        create function public.refuse_worker_writes() returns trigger
        language plpgsql set search_path = pg_catalog, pg_temp as $$
        begin
          if current_setting('app.execution_context', true) = 'worker' then
            raise exception 'workers must not write to %: it belongs to ingestion', tg_table_name
              using errcode = 'insufficient_privilege';
          end if;
          return null;
        end $$
    """)
    op.execute("""
        create trigger refuse_worker_writes before insert or update or delete or truncate
        on public.attribution_events for each statement execute function public.refuse_worker_writes()
    """)
    op.execute("""
        create trigger refuse_worker_writes before insert or update or delete or truncate
        on public.revenue_ledger for each statement execute function public.refuse_worker_writes()
    """)


def _grant() -> None:
    op.execute("""
        do $$
        declare
          name text;
        begin
          execute format('grant create, connect, temporary on database %I to analytics_owner', current_database());
          execute format('grant connect on database %I to analytics_app', current_database());
          foreach name in array array['tenants', 'channel_taxonomy', 'attribution_events', 'attribution_allocations',
                                      'revenue_ledger', 'reconciliation_runs'] loop
            execute format('alter table public.%I owner to analytics_owner', name);
            execute format('grant select on public.%I to analytics_app', name);
          end loop;
        end $$
    """)
    op.execute("grant usage on schema public to analytics_owner, analytics_app")
    op.execute("""
        grant insert, update, delete on public.attribution_events, public.attribution_allocations,
          public.revenue_ledger, public.reconciliation_runs to analytics_app
    """)

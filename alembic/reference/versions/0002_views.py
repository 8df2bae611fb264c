"""The five materialized views, each with the unique index that REFRESH CONCURRENTLY needs.

They are populated when they are made, so that the first refresh can be a concurrent one. What is done here against
rows that change without a change of the data, each of which a concurrent refresh would delete and insert again:

  days        are UTC's, whatever time zone the refreshing session has.
  averages    are of numeric, exact in any order of the rows; of floats they would not be.
  ties        are broken: of two reconciliation runs at one instant the one with the greater id counts, always.
  event_key   stands in for event_id in a key where allocations without an event are rows too. REFRESH compares keys
              by =, by which no NULL equals another.
  last_event_at  is a fact of the data. An age in seconds, counted from now(), would be wrong a second later; readers
              compute it: now() - last_event_at.
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("""
        create materialized view public.mv_allocation_summary as
        select a.tenant_id,
               a.event_id,
               coalesce(a.event_id, '00000000-0000-0000-0000-000000000000'::uuid) as event_key,
               a.model_version,
               sum(a.allocated_cents)::bigint as total_allocated_cents,
               e.revenue_cents as event_revenue_cents,
               coalesce(sum(a.allocated_cents) = e.revenue_cents, false) as is_balanced,
               (sum(a.allocated_cents) - e.revenue_cents)::bigint as drift_cents
        from public.attribution_allocations a
        left join public.attribution_events e on e.tenant_id = a.tenant_id and e.event_id = a.event_id
        group by a.tenant_id, a.event_id, a.model_version, e.revenue_cents
    """)
    op.execute("""
        create unique index mv_allocation_summary_key
        on public.mv_allocation_summary (tenant_id, event_key, model_version)
    """)
    op.execute("""
        create materialized view public.mv_channel_performance as
        select a.tenant_id,
               a.channel_code,
               (a.allocated_at at time zone 'UTC')::date as allocation_date,
               count(distinct a.event_id) as total_conversions,
               sum(a.allocated_cents)::bigint as total_revenue_cents,
               round(avg(a.confidence_score), 4) as avg_confidence_score,
               count(*) as total_allocations
        from public.attribution_allocations a
        where (a.allocated_at at time zone 'UTC')::date > (now() at time zone 'UTC')::date - 90
        group by 1, 2, 3
    """)
    op.execute("""
        create unique index mv_channel_performance_key
        on public.mv_channel_performance (tenant_id, channel_code, allocation_date)
    """)
    op.execute("""
        create materialized view public.mv_daily_revenue_summary as
        select l.tenant_id,
               (l.booked_at at time zone 'UTC')::date as revenue_date,
               l.state,
               l.currency,
               sum(l.amount_cents)::bigint as total_amount_cents,
               count(*) as transaction_count
        from public.revenue_ledger l
        where l.state in ('captured', 'refunded', 'chargeback')
        group by 1, 2, 3, 4
    """)
    op.execute("""
        create unique index mv_daily_revenue_summary_key
        on public.mv_daily_revenue_summary (tenant_id, revenue_date, state, currency)
    """)
    op.execute("""
        create materialized view public.mv_realtime_revenue as
        select l.tenant_id,
               round(sum(case l.state when 'captured' then l.amount_cents else -l.amount_cents end) / 100, 2)
                 as total_revenue,
               bool_and(l.is_verified) as verified,
               max(l.booked_at) as last_event_at
        from public.revenue_ledger l
        where l.state in ('captured', 'refunded', 'chargeback')
        group by l.tenant_id
    """)
    op.execute("create unique index mv_realtime_revenue_key on public.mv_realtime_revenue (tenant_id)")
    op.execute("""
        create materialized view public.mv_reconciliation_status as
        select distinct on (r.tenant_id) r.tenant_id, r.state, r.last_run_at, r.run_id as reconciliation_run_id
        from public.reconciliation_runs r
        order by r.tenant_id, r.last_run_at desc, r.run_id desc
    """)
    op.execute("create unique index mv_reconciliation_status_key on public.mv_reconciliation_status (tenant_id)")
    _hand_over()


def downgrade() -> None:
    op.execute("""
        drop materialized view
          public.mv_allocation_summary, public.mv_channel_performance, public.mv_daily_revenue_summary,
          public.mv_realtime_revenue, public.mv_reconciliation_status
    """)
    op.execute("""
        revoke all on public.attribution_allocations, public.attribution_events, public.revenue_ledger,
          public.reconciliation_runs from analytics_views
    """)
    op.execute("revoke all on schema public from analytics_views, analytics_operator")
    op.execute("""
        do $$ begin
          execute format('revoke all on database %I from analytics_views, analytics_operator', current_database());
        end $$
    """)


def _hand_over() -> None:
    # TEMPORARY: a concurrent refresh builds its new rows in a temporary table, as the view's owner.
    op.execute("""
        do $$
        declare
          name text;
        begin
          execute format('grant temporary on database %I to analytics_views', current_database());
          execute format('grant connect on database %I to analytics_operator', current_database());
          foreach name in array array['mv_allocation_summary', 'mv_channel_performance', 'mv_daily_revenue_summary',
                                      'mv_realtime_revenue', 'mv_reconciliation_status'] loop
            execute format('alter materialized view public.%I owner to analytics_views', name);
            execute format('grant select on public.%I to analytics_app', name);
            if current_setting('server_version_num')::int >= 170000 then
              execute format('grant maintain on public.%I to analytics_operator', name);
            end if;
          end loop;
        end $$
    """)
    op.execute("grant usage on schema public to analytics_views, analytics_operator")
    op.execute("""
        grant select on public.attribution_allocations, public.attribution_events, public.revenue_ledger,
          public.reconciliation_runs to analytics_views
    """)

-- Purchases of one tenant, each with the customer's way to it: four touches, the purchase, what two models allocate
-- to the channels, and what the ledger books. One statement, so that the writer adds whole purchases or none.
--   $1 tenant  $2 purchases  $3 days that they are spread over, 0 for now  $4 whatever makes these purchases' ids
with journey as materialized (
  select $4::text || ':' || j as name, j, revenue_cents, touched,
         -- Shops open at seven; nothing is bought tomorrow.
         case when $3::int = 0 then now() when opened < now() then opened else opened - interval '1 day' end as bought_at
  from (select j, 490 + (random() ^ 3 * 40000)::bigint as revenue_cents,
               date_trunc('day', now(), 'UTC') - interval '1 day' * floor($3::int * (1 - random() ^ 0.7))
                 + interval '7 hours' + interval '8.5 hours' * (random() + random()) as opened,
               array[random(), random(), random(), random()] as touched
        from generate_series(1, $2::int) as j) as drawn
),
touch as materialized (
  select j.*, k,
         (array['search_paid', 'direct', 'search_organic', 'social_paid', 'email', 'affiliate', 'display',
                'social_organic'])[1 + floor(8 * j.touched[k] ^ 1.6)] as channel_code
  from journey as j cross join generate_series(1, 4) as k
),
event as (
  insert into public.attribution_events (tenant_id, event_id, channel_code, event_type, revenue_cents, occurred_at)
  select $1::uuid, md5(name || ':touch:' || k)::uuid, channel_code, case k when 4 then 'lead' else 'visit' end, 0,
         bought_at - interval '17 minutes' * (5 - k)
  from touch
  union all
  select $1::uuid, md5(name || ':purchase')::uuid, channel_code, 'purchase', revenue_cents, bought_at
  from touch where k = 4
  returning 1
),
allocation as (
  insert into public.attribution_allocations (tenant_id, allocation_id, event_id, model_version, channel_code,
    allocated_cents, confidence_score, allocated_at)
  -- Every 97th allocation is a cent short: real books do not balance either.
  select $1::uuid, md5(name || ':linear:' || k)::uuid, md5(name || ':purchase')::uuid, 'linear.v2', channel_code,
         revenue_cents / 4 + case when k = 4 then revenue_cents % 4 - (j % 97 = 0)::int else 0 end,
         round((0.5 + touched[k] * 0.49)::numeric, 3), bought_at
  from touch
  union all
  select $1::uuid, md5(name || ':last')::uuid, md5(name || ':purchase')::uuid, 'last_touch.v1', channel_code,
         revenue_cents, round((0.6 + touched[k] * 0.39)::numeric, 3), bought_at
  from touch where k = 4
  returning 1
),
entry as (
  insert into public.revenue_ledger (tenant_id, entry_id, state, currency, amount_cents, is_verified, booked_at)
  select $1::uuid, md5(j.name || ':' || booking.state)::uuid, booking.state, t.currency, revenue_cents,
         bought_at + booking.delay < now() - interval '2 days', bought_at + booking.delay
  from journey as j cross join public.tenants as t
  cross join (values ('authorized', interval '0', 1), ('captured', interval '0', 1), ('refunded', interval '4 days', 12),
                     ('chargeback', interval '9 days', 101)) as booking (state, delay, every)
  where t.tenant_id = $1::uuid and j.j % booking.every = 0 and bought_at + booking.delay <= now()
  returning 1
)
select (select count(*) from event) + (select count(*) from allocation) + (select count(*) from entry) as rows

-- What was live when, so that `rag index rollback` is exact; retired generations; parameters of the HNSW index.
-- depends: 0001-foundation

alter table generations drop constraint generations_state_check;
alter table generations add constraint generations_state_check check (state in ('building', 'ready', 'retired'));
alter table generations add column live_since timestamptz;   -- the last time it went live
alter table generations add column retired_at timestamptz;   -- when another took its place; null while it is live

-- A line for each switch. No foreign key to generations: the history outlives what was dropped.
create table activations (
    activation_id bigint generated always as identity primary key,
    collection_id integer not null references collections on delete cascade,
    generation_id integer not null,
    previous_id bigint references activations,   -- where a rollback from here goes; a rollback copies its target's
    activated_at timestamptz not null default clock_timestamp()
);
create index activations_by_collection on activations (collection_id, activation_id);
create index activations_by_previous on activations (previous_id);

-- Until now a generation became ready when it went live, and the order of the switches is that of `ready_at`.
insert into activations (collection_id, generation_id, activated_at)
select g.collection_id, g.generation_id, coalesce(g.ready_at, g.created_at)
from generations g join collections c using (collection_id)
where g.state = 'ready'
order by g.generation_id = c.live_generation_id, g.ready_at, g.generation_id;

with ordered as (
    select activation_id, lag(activation_id) over w as previous_id
    from activations window w as (partition by collection_id order by activation_id)
)
update activations a set previous_id = o.previous_id from ordered o where o.activation_id = a.activation_id;

update generations g set
    live_since = a.activated_at,
    state = case when c.live_generation_id = g.generation_id then 'ready' else 'retired' end,
    retired_at = case when c.live_generation_id = g.generation_id then null else a.activated_at end
from activations a, collections c
where a.generation_id = g.generation_id and c.collection_id = g.collection_id;

update generations set stats = stats || jsonb_build_object(
    'vectors', 'halfvec', 'm', 16, 'ef_construction', 64, 'ef_search', 100, 'recall_chunks', stats -> 'hnsw_chunks'
) where stats -> 'hnsw_chunks' is not null;

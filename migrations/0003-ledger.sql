-- What each run did, what a document took, and where a collection comes from. See docs/concepts.md.
-- depends: 0001-foundation

create table runs (
    run_id bigint generated always as identity primary key,
    generation_id integer not null references generations on delete cascade,
    origins text[] not null,                 -- canonical sources, without secrets
    documents jsonb not null default '{}',   -- seen, new, changed, unchanged, removed, failed
    chunks_embedded bigint not null default 0,
    seconds real not null default 0,
    started_at timestamptz not null default now(),
    finished_at timestamptz                  -- null: it runs, or it was killed
);
create index runs_by_generation on runs (generation_id, run_id);

-- Where the documents of a collection come from: `rag ingest` without a source reads these again.
create table origins (
    collection_id integer not null references collections on delete cascade,
    origin text not null,
    added_at timestamptz not null default now(),
    primary key (collection_id, origin)
);

alter table generation_documents add column seconds real not null default 0;
alter table failures add column seconds real not null default 0;

-- A near copy of a chunk elsewhere in the generation, left out of search on request (`rag ingest --deduplicate`).
alter table chunks add column is_duplicate boolean not null default false;

-- Collections, documents, sections, index generations, chunks. See docs/concepts.md.
-- depends:

create extension if not exists vector;

create table collections (
    collection_id integer generated always as identity primary key,
    name text not null unique,
    live_generation_id integer,
    created_at timestamptz not null default now()
);

create table documents (
    collection_id integer not null references collections on delete cascade,
    doc_id text not null,
    source text not null,                    -- canonical URI
    mime text not null,
    content_hash text not null,
    meta jsonb not null default '{}',
    tenant text not null default '',
    labels text[] not null default '{}',
    updated_at timestamptz not null default now(),
    primary key (collection_id, doc_id)
);

create table sections (
    collection_id integer not null,
    section_id text not null,
    doc_id text not null,
    ordinal integer not null,                -- reading order inside the document
    source text not null,                    -- document source, #anchor appended
    title text not null,                     -- heading path
    text text not null,
    primary key (collection_id, section_id),
    foreign key (collection_id, doc_id) references documents on delete cascade
);
create index sections_by_document on sections (collection_id, doc_id);

-- One way of indexing a collection. Several coexist; collections.live_generation_id names the one readers use.
create table generations (
    generation_id integer generated always as identity primary key,
    collection_id integer not null references collections on delete cascade,
    config jsonb not null,                   -- extractor version, chunk size and overlap
    fingerprint jsonb not null,              -- of the embedder; a query encoder must match it
    dim integer not null check (dim > 0),
    state text not null default 'building' check (state in ('building', 'ready')),
    stats jsonb not null default '{}',       -- recall of the approximate index, build seconds
    created_at timestamptz not null default now(),
    ready_at timestamptz,
    unique (collection_id, config, fingerprint)
);
alter table collections add foreign key (live_generation_id) references generations;

-- The manifest: a document is in a generation when all its chunks are, by the same transaction.
create table generation_documents (
    generation_id integer not null references generations on delete cascade,
    doc_id text not null,
    content_hash text not null,
    num_chunks integer not null,
    indexed_at timestamptz not null default now(),
    primary key (generation_id, doc_id)
);

-- A partition for each generation: it is indexed alone and dropped alone. Rows are whole, so that a reader of one
-- generation never depends on what a rebuild does to documents and sections.
create table chunks (
    generation_id integer not null,
    chunk_id text not null,
    doc_id text not null,
    section_id text not null,
    source text not null,
    title text not null,
    text text not null,
    start_char integer not null,
    end_char integer not null,
    embedding vector not null,
    primary key (generation_id, chunk_id)
) partition by list (generation_id);
create index chunks_by_document on chunks (generation_id, doc_id);

-- The ledger of what could not be ingested; an entry goes when the document gets in or disappears.
create table failures (
    generation_id integer not null references generations on delete cascade,
    source text not null,
    reason text not null,
    content_hash text not null,              -- the same content is not tried again; '' where it could not be read
    failed_at timestamptz not null default now(),
    primary key (generation_id, source)
);

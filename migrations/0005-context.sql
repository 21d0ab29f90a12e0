-- What an LLM says a chunk is about within its document: embedded and searched with it. See docs/context.md.
-- depends: 0003-ledger

alter table chunks add column prefix text not null default '';

-- Every reply that was paid for, so that no run pays twice. Knows no collection: equal documents share it.
create table chunk_prefixes (
    prefix_key text primary key,             -- hash of the model and of all that it was asked
    prefix text not null,                    -- '' where the reply could not be used
    created_at timestamptz not null default now()
);

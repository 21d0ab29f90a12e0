-- Settings of a collection, and which documents changed when: what an index outside the database follows.
-- depends: 0001-foundation

alter table collections add column settings jsonb not null default '{}';   -- language, fusion weights

-- A row for each document that ever came, changed or went. A reader that knows the state as of transaction x reads
-- the documents with changed_in >= the oldest transaction that ran then: none is missed, whatever order they end in.
create table changes (
    generation_id integer not null references generations on delete cascade,
    doc_id text not null,
    changed_in xid8 not null,
    primary key (generation_id, doc_id)
);
create index changes_by_transaction on changes (generation_id, changed_in);

create function note_changes() returns trigger language plpgsql as $$
begin
    insert into changes (generation_id, doc_id, changed_in)
    select distinct t.generation_id, t.doc_id, pg_current_xact_id()
    from touched t join generations g using (generation_id)   -- gone already where it is being dropped
    order by t.generation_id, t.doc_id                        -- one order of locks: no deadlocks
    on conflict (generation_id, doc_id) do update set changed_in = excluded.changed_in;
    return null;
end $$;

create trigger note_new after insert on generation_documents
    referencing new table as touched for each statement execute function note_changes();
create trigger note_changed after update on generation_documents
    referencing new table as touched for each statement execute function note_changes();
create trigger note_removed after delete on generation_documents
    referencing old table as touched for each statement execute function note_changes();

-- What a document is, changed without its text.
create function note_documents() returns trigger language plpgsql as $$
begin
    insert into changes (generation_id, doc_id, changed_in)
    select m.generation_id, m.doc_id, pg_current_xact_id()
    from touched t join before b using (collection_id, doc_id)
    join generations g using (collection_id)
    join generation_documents m on m.generation_id = g.generation_id and m.doc_id = t.doc_id
    where (t.tenant, t.labels, t.meta, t.mime) is distinct from (b.tenant, b.labels, b.meta, b.mime)
    order by m.generation_id, m.doc_id
    on conflict (generation_id, doc_id) do update set changed_in = excluded.changed_in;
    return null;
end $$;

create trigger note_documents after update on documents
    referencing new table as touched old table as before for each statement execute function note_documents();

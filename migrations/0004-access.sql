-- Who may read what, withheld by the database itself. See docs/access.md.
-- depends: 0003-ledger

alter table chunks add column tenant text not null default '';       -- the document's, and kept so by the writer
alter table chunks add column labels text[] not null default '{}';
alter table origins add column tenant text not null default '';      -- what the next run without --tenant, --label gives
alter table origins add column labels text[] not null default '{}';

update chunks c set tenant = d.tenant, labels = d.labels
from generations g join documents d using (collection_id)
where g.generation_id = c.generation_id and d.doc_id = c.doc_id and (d.tenant <> '' or d.labels <> '{}');

create index documents_by_tenant on documents (collection_id, tenant);

-- Owners and superusers pass every policy, so readers take this role for a transaction (rag/index/access.py). Roles
-- belong to the whole server: another database may have made it before, or be making it now.
do $$
declare
    needed text := case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end;
begin
    if to_regrole('rag_reader') is null then
        begin
            create role rag_reader nologin;
        exception when duplicate_object or unique_violation then null;
        end;
    end if;
    if not pg_has_role(current_user, 'rag_reader', needed) then
        begin
            grant rag_reader to current_user;
        exception when internal_error then null;  -- granted by another database at this very moment
        end;
    end if;
exception when insufficient_privilege then
    raise insufficient_privilege using
        message = format('user %s may not create or grant the role rag_reader', current_user),
        hint = format('as a superuser run `create role rag_reader nologin; grant rag_reader to %I;`', current_user);
end $$;

do $$ begin execute format('grant usage on schema %I to rag_reader', current_schema()); end $$;

-- Closes a table with `tenant` and `labels` to readers, but for the rows that the transaction's settings name. Policies
-- and grants of a partitioned table do not hold for a partition that is read by its own name, so each gets its own; one
-- that was forgotten cannot be read at all. A setting that was made for a transaction is '' after it, not null, and ''
-- is a tenant; so `rag.access` has to say that the others count. Each subselect runs once for a query.
create function protect(target regclass) returns void language plpgsql as $$
begin
    execute format('alter table %s enable row level security', target);
    execute format('drop policy if exists readers on %s', target);
    execute format($policy$
        create policy readers on %s for select to rag_reader using (
            (select current_setting('rag.access', true) = 'all')
            or tenant = (select case current_setting('rag.access', true)
                         when 'tenant' then current_setting('rag.tenant', true) end)
            and (labels = '{}'
                 or labels && (select case current_setting('rag.access', true)
                               when 'tenant' then current_setting('rag.labels', true)::text[] end))
        )$policy$, target);
    execute format('grant select on %s to rag_reader', target);
end $$;

do $$ begin
    perform protect('documents'), protect('chunks');
    perform protect(inhrelid::regclass) from pg_inherits where inhparent = 'chunks'::regclass;
end $$;

-- A section is read where its document is.
alter table sections enable row level security;
create policy readers on sections for select to rag_reader using (
    exists (select from documents d where d.collection_id = sections.collection_id and d.doc_id = sections.doc_id)
);
grant select on sections to rag_reader;

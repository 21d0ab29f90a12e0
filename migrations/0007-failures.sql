-- A failure is found by the digest of its source: a source may be longer than an entry of an index.
-- depends: 0001-foundation

alter table failures drop constraint failures_pkey;
create unique index failures_by_source on failures (generation_id, md5(source));

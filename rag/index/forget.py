"""Takes sources out of a collection: they are remembered no more, and their documents go. SQL alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from rag.config import Settings
from rag.errors import NotFound
from rag.index import ledger
from rag.index.database import open_database
from rag.index.duplicates import update_near_copies
from rag.index.generations import activate, generations
from rag.index.lexical import update_lexical
from rag.index.store import Store
from rag.ingest.sources import canonical_source, is_within, listed_roots


@dataclass(frozen=True)
class Forgotten:
    """`removed` documents, from every index generation."""

    collection: str
    sources: tuple[str, ...]
    removed: int


def forget(sources: Sequence[str], settings: Settings) -> Forgotten:
    """Removes the documents of `sources` that no other source of the collection holds. Reads none of the sources.

    Raises NotFound where one is not a source of the collection; SourceError, DatabaseError.
    """
    store = Store(open_database(settings))
    try:
        existing = generations(store, settings.collection)
        known = ledger.origins(store, settings.collection)
        forgotten = tuple(dict.fromkeys(canonical_source(source) for source in sources))
        for source in forgotten:
            if source not in known:
                raise NotFound(
                    f"{source} is no source of collection {settings.collection!r}, which has:"
                    f" {', '.join(known) or 'none'}"
                )
        collection_id = store.ensure_collection(settings.collection)
        with ledger.only_one(store, collection_id, settings.collection) as check_lock:
            roots = [root for source in forgotten for root in listed_roots(source, settings)]
            others = [root for o in known if o not in forgotten for root in listed_roots(o, settings)]

            def goes(source: str) -> bool:
                return _is_within_any(source, roots) and not _is_within_any(source, others)

            doc_ids = [doc_id for doc_id, d in store.documents(collection_id).items() if goes(d.source)]
            check_lock()
            removed = store.remove_documents(collection_id, doc_ids)
            ledger.forget_origins(store, collection_id, forgotten)
            for generation in existing:
                failed = [failure.source for failure in ledger.failures(store, generation)]
                ledger.forget_failures(store, generation, [source for source in failed if goes(source)])
            if live := next((g for g in existing if g.is_live), None):
                # Near copies of what was removed are no copies any more.
                copies = update_near_copies(store, live, hide=bool(live.stats.get("deduplicated")))
                activate(store, live, {"near_copies": copies}, live.generation_id)
                update_lexical(store, settings.collection, settings.home)
    finally:
        store.close()
    return Forgotten(settings.collection, forgotten, removed)


def _is_within_any(source: str, places: Sequence[str]) -> bool:
    return any(is_within(source, place) for place in places)

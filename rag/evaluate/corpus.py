"""A dataset in, a live collection of its corpus out, by the ordinary `rag.ingest`. Knows no metric.

A line of corpus.jsonl is a document with one section, whose source ends in `?id=` and the BEIR id. The file is
ingested by a link below `home/datasets`, named like the collection: a dataset that was moved or copied is the same.
"""

import os
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from rag.config import Settings
from rag.errors import NotFound, SourceError
from rag.evaluate.dataset import CORPUS, Dataset
from rag.generate.complete import contextualizer
from rag.index.build import ingest
from rag.index.database import open_database
from rag.index.generations import live_generation
from rag.index.ledger import failures
from rag.index.store import Generation, Store
from rag.records import content_id


@dataclass(frozen=True)
class Corpus:
    """What is searched: recorded with the results."""

    collection: str
    index_id: int
    model: str
    config: dict[str, Any]  # of the index generation: how it was cut
    documents: int
    chunks: int
    failed: int  # documents that could not be ingested; `rag status --failures` has the reasons
    missing: int  # relevant sections that are not in the collection, and so cannot be found


def prepare_corpus(dataset: Dataset, settings: Settings, collection: str | None = None) -> Corpus:
    """Ingests the corpus where the collection does not hold it yet; a second time does nothing.

    `collection` names one to search as it is; it is made where it has no live index. Raises what ingest raises, and
    SourceError where the collection has none of the judged sections.
    """
    name = collection or collection_name(dataset, settings)
    if collection is None or not _is_live(collection, settings):
        wanted = settings.model_copy(update={"collection": name})
        ingest([_source(dataset, settings)], wanted, contextualize=contextualizer(settings))
    store = Store(open_database(settings))
    try:
        return _describe(store, live_generation(store, name), dataset)
    finally:
        store.close()


def collection_name(dataset: Dataset, settings: Settings) -> str:
    """By the folder's name and its content; in a database that several homes share, by the home with the link too."""
    is_shared = settings.database_url is not None and not dataset.source
    return dataset.collection + (f"-{content_id(str(settings.home))[:6]}" if is_shared else "")


def _source(dataset: Dataset, settings: Settings) -> str:
    if dataset.source:
        return dataset.source
    link = settings.home / "datasets" / dataset.collection / CORPUS
    link.parent.mkdir(parents=True, exist_ok=True)
    new = link.with_name(f"{CORPUS}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(dataset.folder / CORPUS)
    new.replace(link)
    return str(link)


def _is_live(collection: str, settings: Settings) -> bool:
    store = Store(open_database(settings))
    try:
        live_generation(store, collection)
    except NotFound:
        return False
    finally:
        store.close()
    return True


def _describe(store: Store, generation: Generation, dataset: Dataset) -> Corpus:
    judged = dataset.judged
    missing = judged - _section_ids(store, generation, dataset)
    if judged and missing == judged:
        example = min(judged)
        raise SourceError(
            f"collection {generation.collection!r}: expected sections that dataset {dataset.name} judges, such as"
            f" {example!r}, found none of {len(judged)}; name the collection that holds its corpus, or none"
        )
    counts = store.counts(generation)
    return Corpus(
        collection=generation.collection,
        index_id=generation.generation_id,
        model=str(generation.fingerprint["model"]),
        config=generation.config,
        documents=counts["documents"],
        chunks=counts["chunks"],
        failed=len(failures(store, generation)),
        missing=len(missing),
    )


def _section_ids(store: Store, generation: Generation, dataset: Dataset) -> set[str]:
    """Of the sections that have a chunk."""
    with store.pool.connection() as conn, conn.transaction():
        rows = conn.execute(sql.SQL("select distinct source from {}").format(generation.table))
        return {dataset.section_id(source) for (source,) in rows}

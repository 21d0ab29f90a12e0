"""A collection in, a table source -> topic out: by a metadata value of its documents, or by clusters of its sections.

For collections whose paths say nothing of topics. Knows no questions. A document that is ingested later is in no
table: its hits are of no topic until the topics are trained again.
"""

import numpy as np

from rag.errors import SourceError
from rag.index.generations import live_generation
from rag.index.store import Store
from rag.search.rerank.topic_rule import TableRule

STARTS = 5  # of k-means; the best of them counts


def topics_by_metadata(store: Store, collection: str, key: str) -> TableRule:
    """The value of `key` in each document's metadata. Raises NotFound, SourceError."""
    generation = live_generation(store, collection)
    with store.pool.connection() as conn, conn.transaction():
        rows = conn.execute(
            "select source, meta ->> %s from documents where collection_id = %s and meta ->> %s <> ''",
            [key, generation.collection_id, key],
        ).fetchall()
    if not rows:
        raise SourceError(
            f"collection {collection!r}: expected documents with metadata {key!r}, found none; check --metadata"
        )
    return TableRule({source: str(value) for source, value in rows})


def topics_by_cluster(store: Store, collection: str, num_clusters: int, seed: int) -> TableRule:
    """k-means over sections of the live index: `cluster-1` is the largest. Raises NotFound, SourceError."""
    from psycopg import sql

    generation = live_generation(store, collection)
    query = sql.SQL("select source, avg(embedding) from {} group by source order by source").format(generation.table)
    with store.pool.connection() as conn, conn.transaction():
        rows = conn.execute(query).fetchall()
    if not 2 <= num_clusters <= len(rows):
        raise SourceError(
            f"collection {collection!r}: expected 2 to {len(rows)} clusters of its {len(rows)} sections,"
            f" found {num_clusters}; check --clusters"
        )
    return TableRule(
        cluster([row[0] for row in rows], np.stack([row[1].to_numpy() for row in rows]), num_clusters, seed)
    )


def cluster(sources: list[str], embeddings: np.ndarray, num_clusters: int, seed: int) -> dict[str, str]:
    """source -> cluster-1 (the largest) to cluster-n. `embeddings` is (sources, dim)."""
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import normalize

    means = KMeans(num_clusters, random_state=seed, n_init=STARTS)
    found = means.fit_predict(normalize(embeddings.astype(np.float32)))
    order = np.argsort(-np.bincount(found, minlength=num_clusters), kind="stable").tolist()
    return {source: f"cluster-{order.index(int(which)) + 1}" for source, which in zip(sources, found, strict=True)}

"""What a collection of a given size takes: bytes, memory, hours. Measured unit costs in, a table of Markdown out.

    python benchmarks/capacity.py                                     # the unit costs that docs/scaling.md names
    python benchmarks/capacity.py --collection python --rate 37       # those of a collection in RAG_HOME

Every row but that of the measured collection is an extrapolation: bytes and embedding linear, the build of the HNSW
index as n log n. Knows nothing of networks, backups, replicas or vacuum.
"""

import argparse
import math
from dataclasses import dataclass

from rag.config import load_settings
from rag.index.database import open_database
from rag.index.generations import live_generation
from rag.index.store import Store

SIZES = (100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
CORES, DAY_S = 64, 86_400  # of an embedding machine; how long a first ingestion may take
SERVER_RAM = 256e9  # bytes of a database server, half of which may hold HNSW
HNSW_SHARE = 0.5


@dataclass(frozen=True)
class Units:
    """Costs of one chunk."""

    chunks: int  # in the collection they were measured on
    chunks_per_document: float
    table_bytes: float  # rows with vectors (TOAST included) and their B-trees
    section_bytes: float  # sections, documents, manifest and their B-trees
    hnsw_bytes: float
    hnsw_seconds: float  # of the whole build, for `chunks` chunks
    chunks_per_core_s: float  # whole pipeline, start-up excluded

    def build_s(self, num_chunks: int) -> float:
        """n log n: each of n insertions descends a graph whose depth grows with log n."""
        scale = num_chunks * math.log(num_chunks) / (self.chunks * math.log(self.chunks))
        return self.hnsw_seconds * scale


# The Python documentation, 530 pages and 497 of their sources, 700/50, all-MiniLM-L6-v2, 2 cores: docs/scaling.md.
MEASURED = Units(46_447, 46_447 / 1027, 2439, 419, 1169, 6.25, 37.0)


def measure(collection: str, rate: float) -> Units:
    """The unit costs of the live index of a collection, the only one in its database, once it has its HNSW."""
    settings = load_settings(collection=collection)
    store = Store(open_database(settings))
    try:
        generation = live_generation(store, collection)
        counts = store.counts(generation)
        with store.pool.connection() as conn:
            row = conn.execute(
                "select pg_total_relation_size(to_regclass(%s)), pg_total_relation_size('sections'),"
                " pg_total_relation_size('documents') + pg_total_relation_size('generation_documents')",
                [f"chunks_{generation.generation_id}"],
            ).fetchone()
    finally:
        store.close()
    assert row is not None
    index = generation.stats["hnsw_bytes"] / generation.stats["hnsw_chunks"]
    total, sections, documents = (size / counts["chunks"] for size in row)
    return Units(
        chunks=counts["chunks"],
        chunks_per_document=counts["chunks"] / counts["documents"],
        table_bytes=total - index,
        section_bytes=sections + documents,
        hnsw_bytes=index,
        hnsw_seconds=generation.stats["hnsw_seconds"],
        chunks_per_core_s=rate,
    )


def row(units: Units, num_chunks: int) -> list[str]:
    core_s = num_chunks / units.chunks_per_core_s
    stored = num_chunks * (units.table_bytes + units.section_bytes + units.hnsw_bytes)
    hnsw = num_chunks * units.hnsw_bytes
    return [
        f"{num_chunks:,}",
        f"{num_chunks / units.chunks_per_document:,.0f}",
        _bytes(stored),
        _bytes(hnsw),
        f"{core_s / 3600:,.1f}",
        f"{math.ceil(core_s / DAY_S / CORES):,}",
        _time(units.build_s(num_chunks)),
        f"{math.ceil(hnsw / (SERVER_RAM * HNSW_SHARE)):,}",
    ]


def table(units: Units) -> str:
    head = [
        "chunks",
        "documents",
        "in PostgreSQL",
        "of it HNSW",
        "core-hours to embed",
        f"machines of {CORES} cores for a day",
        "HNSW build, one server",
        f"servers of {SERVER_RAM / 1e9:.0f} GB that keep HNSW in memory",
    ]
    lines = [head, ["---:"] * len(head), *(row(units, size) for size in (units.chunks, *SIZES))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", help="measure its unit costs instead")
    parser.add_argument("--rate", type=float, default=MEASURED.chunks_per_core_s, help="chunks/s of a core")
    args = parser.parse_args()
    units = measure(args.collection, args.rate) if args.collection else MEASURED
    print(units, table(units), sep="\n\n")


if __name__ == "__main__":
    main()

"""Moving a collection beside embedding it again, in chunks/s.

    RAG_HOME=~/.rag python benchmarks/move.py python        # the name of a collection that is there

Dumps the collection to a temporary folder, loads it into a temporary database (check, COPY, HNSW and its recall are in
the time, the start of the server is not), and embeds a sample of its chunks with the configured model, warm, before and
after, so that a machine whose speed drifts shows in the spread. The collection is only read.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rag.config import load_settings
from rag.index.database import open_database
from rag.index.dump import dump_collection
from rag.index.embed import Embedder, load_embedder
from rag.index.load import load_collection
from rag.index.server import EmbeddedServer
from rag.index.store import Store

SAMPLE = 512


def sample_texts(dump: Path) -> list[str]:
    """Every n-th chunk, as it is embedded."""
    files = sorted(dump.glob("*-chunks-*.parquet"))
    table = pa.concat_tables(pq.read_table(file, columns=["title", "text"]) for file in files)
    rows = table.take(list(range(0, len(table), max(1, len(table) // SAMPLE)))).to_pylist()
    return [f"{row['title']}\n\n{row['text']}" for row in rows]


def embed_rate(embedder: Embedder, texts: list[str]) -> float:
    embedder.embed(texts[:32], "passage")
    started = time.perf_counter()
    embedder.embed(texts, "passage")
    return len(texts) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection")
    settings = load_settings(collection=parser.parse_args().collection)
    source = Store(open_database(settings))
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as home:
        dump = Path(home) / "dump"
        out = dump_collection(source, settings.collection, str(dump))
        print(f"{out.chunks} chunks, {out.files} files, {out.bytes / 2**20:.1f} MB")
        print(f"dump               {out.chunks / out.seconds:9.1f} chunks/s, {out.seconds:.1f} s", flush=True)
        texts, embedder = sample_texts(dump), load_embedder(settings.embed, settings.home)
        rates = [embed_rate(embedder, texts)]
        target = Store(open_database(load_settings(home=Path(home), database_url=None)))
        back = load_collection(target, str(dump))
        stats = target.live_generation(settings.collection).stats
        print(
            f"load               {back.chunks / back.seconds:9.1f} chunks/s, {back.seconds:.1f} s, {stats}", flush=True
        )
        rates.append(embed_rate(embedder, texts))
        target.close()
        EmbeddedServer(Path(home)).stop()
    source.close()
    moved = out.chunks / (out.seconds + back.seconds)
    print(f"dump and load      {moved:9.1f} chunks/s")
    print(f"embedding ({embedder.precision})   {min(rates):9.1f} to {max(rates):.1f} chunks/s, {len(texts)} chunks")
    print(f"moving / embedding {moved / max(rates):9.1f} to {moved / min(rates):.1f}")


if __name__ == "__main__":
    main()

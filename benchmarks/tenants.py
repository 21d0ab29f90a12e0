"""Do foreign chunks ever come through? 10,000 requests of random callers of 20 tenants, over a few pooled connections.

    python benchmarks/tenants.py --requests 10000

Requests are searches in every mode, with filters, exact or not. Half of them run without the application's own rules of
access, so that the database alone withholds; half of each are forced along the graph. Every tenth transaction fails on
purpose before the next one takes its connection. Prints what was returned and how much of it was foreign; the exit
status is 1 where that is not 0.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "index"))

from many_tenants import Corpus, MadeEmbedder, Request, fill, may_see, random_request, search  # noqa: E402

from rag.config import SearchConfig  # noqa: E402
from rag.index import restricted  # noqa: E402
from rag.index.access import reading_as  # noqa: E402
from rag.index.database import migrate  # noqa: E402
from rag.index.server import EmbeddedServer  # noqa: E402
from rag.index.store import Store  # noqa: E402
from rag.search.retrieve import Retriever  # noqa: E402

THREADS, CONNECTIONS = 8, 4


def fail(store: Store, request: Request) -> None:
    """A transaction of this caller's that ends in an error."""
    try:
        with store.pool.connection() as conn, reading_as(conn, request.access):
            conn.execute("select 1 / 0")
    except psycopg.errors.DivisionByZero:
        pass


def answer(retriever: Retriever, corpus: Corpus, seed: int) -> tuple[int, int]:
    """(chunks returned, foreign ones among them) for the request of this number."""
    rng = random.Random(seed)
    request = random_request("crowd", rng)
    if seed % 10 == 0:
        fail(retriever.store, random_request("crowd", rng))
    sources = search(retriever, "crowd", request)
    return len(sources), sum(not may_see(request.access, corpus.documents[source]) for source in sources)


class Careless(Retriever):
    """Forgets who asks: it ranks everything, and adds no condition of its own to what it reads."""

    def _allowed(self, *_: object) -> None:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rag-bench-") as home:
        server = EmbeddedServer(Path(home))
        migrate(url := server.start())
        store = Store(url, max_connections=CONNECTIONS)
        try:
            corpus = fill(store, "crowd", num_documents=1000, num_chunks=3)
            embedder: Any = MadeEmbedder()
            retrievers = [kind(store, SearchConfig(), embedder, Path(home)) for kind in (Retriever, Careless)]
            started = time.monotonic()
            num_rows = num_foreign = 0
            share = args.requests // 4
            for part in range(4):
                is_careless, along_graph = part >= 2, part % 2
                restricted.MIN_SCANNED, restricted.STEP_COST = (1, 0.0) if along_graph else (2_000, 8.0)
                if is_careless:
                    restricted.access_condition = lambda access, alias: (sql.SQL("true"), {})
                seeds = range(part * share, (part + 1) * share)
                with ThreadPoolExecutor(THREADS) as threads:
                    retriever = retrievers[is_careless]
                    for returned, foreign in threads.map(lambda seed: answer(retriever, corpus, seed), seeds):  # noqa: B023
                        num_rows, num_foreign = num_rows + returned, num_foreign + foreign
            seconds = round(time.monotonic() - started, 1)
        finally:
            store.close()
            server.stop()
    print(json.dumps({"requests": args.requests, "chunks": num_rows, "foreign": num_foreign, "seconds": seconds}))
    return int(num_foreign > 0)


if __name__ == "__main__":
    sys.exit(main())

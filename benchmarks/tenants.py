"""Do foreign chunks ever come through? 10,000 requests of random callers of 20 tenants, over a few pooled connections.

    python benchmarks/tenants.py --requests 10000

Half of the requests go through rag.index.vectors.nearest, with filters, exact or not, half of those forced along the
graph; the other half ask for everything without the application's own conditions, so that the database alone withholds.
Every tenth transaction fails on purpose before the next one takes its connection. Prints what was returned and how much
of it was foreign; the exit status is 1 where that is not 0.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "index"))

from many_tenants import Corpus, Request, ask, fill, may_see, random_request  # noqa: E402

from rag.index import restricted  # noqa: E402
from rag.index.access import reading_as  # noqa: E402
from rag.index.database import migrate  # noqa: E402
from rag.index.restricted import every_chunk  # noqa: E402
from rag.index.server import EmbeddedServer  # noqa: E402
from rag.index.store import Store  # noqa: E402
from rag.index.vectors import _by_scan  # noqa: E402

THREADS, CONNECTIONS = 8, 4


def fail(store: Store, request: Request) -> None:
    """A transaction of this caller's that ends in an error."""
    try:
        with store.pool.connection() as conn, reading_as(conn, request.access):
            conn.execute("select 1 / 0")
    except psycopg.errors.DivisionByZero:
        pass


def answer(store: Store, corpus: Corpus, seed: int) -> tuple[int, int]:
    """(chunks returned, foreign ones among them) for the request of this number."""
    rng = random.Random(seed)
    request = random_request("crowd", rng)
    if seed % 10 == 0:
        fail(store, random_request("crowd", rng))
    if seed % 2:
        allowed = corpus.allowed(request)
        rows = ask(store, corpus, request)
        return len(rows), sum(row.source not in allowed for row in rows)
    with store.pool.connection() as conn, reading_as(conn, request.access):
        rows = _by_scan(conn, every_chunk(corpus.generation), request.query, request.k)
    return len(rows), sum(not may_see(request.access, corpus.documents[row.source]) for row in rows)


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
            started = time.monotonic()
            num_rows = num_foreign = 0
            for half, limit in enumerate((restricted.MIN_SCANNED, 1)):
                restricted.MIN_SCANNED = limit
                if half:
                    restricted.STEP_COST = 0.0  # now the graph is always worth it
                seeds = range(half * args.requests // 2, (half + 1) * args.requests // 2)
                with ThreadPoolExecutor(THREADS) as threads:
                    for returned, foreign in threads.map(lambda seed: answer(store, corpus, seed), seeds):
                        num_rows, num_foreign = num_rows + returned, num_foreign + foreign
            seconds = round(time.monotonic() - started, 1)
        finally:
            store.close()
            server.stop()
    print(json.dumps({"requests": args.requests, "chunks": num_rows, "foreign": num_foreign, "seconds": seconds}))
    return int(num_foreign > 0)


if __name__ == "__main__":
    sys.exit(main())

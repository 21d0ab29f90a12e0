"""`rag …` with the embedder observed: each batch that it begins leaves its chunks' ids in a file.

    python benchmarks/counted.py FOLDER SECONDS_PER_CHUNK ingest docs/ --collection c

All else is the product as it is: `EmbedChunks` is replaced by a subclass that counts before it computes, so that a
batch lost half-way counts whole. It also waits SECONDS_PER_CHUNK, so that a tiny model takes the time of a large one.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from rag import cli
from rag.index import job
from rag.index.stages import chunks_of


def counted(folder: Path, seconds_per_chunk: float) -> type[job.EmbedChunks]:
    """The product's embedding actor, one file per process in `folder`, a line per batch."""

    class CountedEmbedChunks(job.EmbedChunks):
        def __call__(self, batch: Any) -> Any:
            ids = [chunk.chunk_id for text in batch.column("chunks").to_pylist() for chunk in chunks_of(text)]
            with (folder / f"{os.getpid()}.ids").open("a") as stream:
                stream.write(" ".join(ids) + "\n")
            time.sleep(seconds_per_chunk * len(ids))
            return super().__call__(batch)

    return CountedEmbedChunks


def begun(folder: Path) -> list[str]:
    """The ids of all chunks whose embedding was begun, as often as it was."""
    return [chunk_id for path in sorted(folder.glob("*.ids")) for chunk_id in path.read_text().split()]


if __name__ == "__main__":
    job.EmbedChunks = counted(Path(sys.argv[1]), float(sys.argv[2]))  # type: ignore[misc]
    del sys.argv[1:3]
    cli.main()

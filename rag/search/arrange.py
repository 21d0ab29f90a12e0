"""What is done with hits before anybody reads them: copies merged, put in order again, made diverse, widened.

Each step is off until it is asked for. The hits are those of one generation, and so is what is read around them.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from rag.config import SearchConfig
from rag.index.store import Generation, Store
from rag.records import Hit
from rag.search.context import with_neighbours, with_sections
from rag.search.diversity import diversify, merge_copies
from rag.search.rerank import Reranker

SPARE = 4  # hits looked at for one that is wanted, where some of them may be left out

Timed = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Arrangement:
    """Which steps. `rerank_k` hits are put in order by the reranker, if there is one; the others stay behind them."""

    config: SearchConfig
    reranker: Reranker | None = None
    rerank_k: int = 50

    def num_needed(self, k: int) -> int:
        """Hits to ask the search for, so that k are left."""
        is_choosy = self.config.merge_copies or self.config.diversity < 1
        return max(k * SPARE if is_choosy else k, self.rerank_k if self.reranker else 0)

    def arrange(  # noqa: PLR0913 - what is arranged, and where it came from
        self, store: Store, generation: Generation, query: str, hits: Sequence[Hit], k: int, timed: Timed
    ) -> list[Hit]:
        """At most k hits, ranks from 1."""
        config, found = self.config, list(hits)
        if config.merge_copies:
            found, _ = merge_copies(found)
        if self.reranker is not None and found:
            with timed("rerank"):
                found = self.reranker.rerank(query, found[: self.rerank_k]) + found[self.rerank_k :]
        if config.diversity < 1:
            found = diversify(store, generation, found, k, config.diversity)
        found = found[:k]
        if config.neighbours or config.section_chars:
            with timed("widen"):
                if config.section_chars:
                    found = with_sections(store, generation, found, config.section_chars)
                else:
                    found = with_neighbours(store, generation, found, config.neighbours)
        return [replace(hit, rank=rank) for rank, hit in enumerate(found, start=1)]

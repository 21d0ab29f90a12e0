"""The Ray Data job: listed documents in, whole documents in the store. A thin shell around rag.index.stages.

rows -> [read, extract, chunk] -> [prefixes, on request] -> [embed] -> [write] -> counts
        tasks                     tasks that wait           actors     tasks
"""

import gc
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from rag.config import ContextConfig, Settings
from rag.errors import DatabaseError, ExtractionError, RagError, ResourceError
from rag.index.chunking import needs_embedder, tokenizer_tools
from rag.index.cluster import TASK_CPUS, EmbedPlan, free_cpus, is_running, num_hosts, plan_embedding, ray_session
from rag.index.embed import usable_cpus
from rag.index.fingerprint import Fingerprint
from rag.index.ledger import Failure
from rag.index.prefix import MakeComplete, PrefixCounts, add_prefixes
from rag.index.stages import EmbedChunks, prepare, situate, write, write_batch
from rag.index.store import Generation, Store
from rag.ingest.remote import is_remote
from rag.ingest.sources import read_document
from rag.progress import Progress
from rag.records import DocumentRef

SMALL_JOB_BYTES = 200_000  # about 350 chunks, five seconds of work; Ray and its actor take twice that to start
# A batch is what a kill can undo, so it is a small part of the whole; yet enough to sort by length (about 40 chunks).
BATCH_SHARE, MIN_BATCH_BYTES, MAX_BATCH_BYTES = 1 / 60, 20_000, 300_000
MAX_BATCH = 256  # documents
PORTION_CHARS = 4_000_000  # of extracted text that a small job holds at once
# A stalled job is an error, not a hang; the chunks of the largest document allowed take ten minutes to embed.
NO_PROGRESS_TIMEOUT_S = 3600.0
NO_PREFIX_TIMEOUT_S = 86_400.0  # an LLM may take hours for the chunks of one large document; it has timeouts of its own
MAX_PREFIX_TASKS = 4  # that share the requests at once
MAX_READ_TASKS = 4  # that send this machine's files to the others


Prepare = Callable[[dict[str, Any]], dict[str, Any]]  # a listed document -> its sections and chunks


@dataclass
class JobResult:
    """What one job wrote. `embed_busy` is the share of its time that the embedding actors computed."""

    num_chunks: int = 0
    num_truncated: int = 0  # chunks whose ends the model does not read
    prefixes: PrefixCounts = field(default_factory=PrefixCounts)
    failures: list[Failure] = field(default_factory=list)
    embed_busy: float = 0.0


def run_job(
    documents: Sequence[DocumentRef],
    num_bytes: int,
    settings: Settings,
    generation: Generation,
    store: Store,
    contextualize: MakeComplete | None = None,
) -> JobResult:
    """Ingests `documents`, `num_bytes` in all; their chunks get prefixes where there is an LLM to `contextualize`.

    Little work is done in this process, where no Ray runs yet: starting it would take longer. Raises ResourceError,
    DatabaseError; RagError for whatever else Ray could not get over.
    """
    tools = partial(tokenizer_tools, settings.chunk, settings.embed, Fingerprint(**generation.fingerprint))
    prepared = partial(prepare, config=settings.chunk, tools=tools)
    is_little = num_bytes <= SMALL_JOB_BYTES and settings.ray.address == "local" and not is_running()
    with Progress("ingest", len(documents), "documents") as progress:
        if is_little:
            rows = _rows_made_here(documents, prepared, settings, (generation, store), contextualize)
            return _gather(rows, 1, progress)
        import ray
        from ray.data.exceptions import ExecutionTimeoutError

        with ray_session(settings.ray):
            free = free_cpus()
            plan = plan_embedding(free, ray.cluster_resources().get("GPU", 0))
            batch_bytes = min(MAX_BATCH_BYTES, max(MIN_BATCH_BYTES, int(num_bytes * BATCH_SHARE)))
            batch_size = max(1, min(MAX_BATCH, batch_bytes * len(documents) // max(1, num_bytes)))
            num_blocks = math.ceil(len(documents) / batch_size)
            # On one machine extractors begin, and compute, while the embedder wants to: no more of them than CPUs.
            few = ray.data.TaskPoolStrategy(size=min(num_blocks, max(1, int(free[0])))) if len(free) == 1 else None
            rows = _source(documents, num_blocks, settings).map(prepared, num_cpus=TASK_CPUS, compute=few)
            if contextualize is not None:
                rows = _with_prefixes(rows, num_blocks, settings.context, store.url, contextualize)
            dataset = _embedded(rows, batch_size, plan, settings)
            dataset = dataset.map_batches(
                partial(write, url=store.url, generation=generation),
                batch_format="pyarrow",
                batch_size=batch_size,
                num_cpus=TASK_CPUS,
            )
            try:
                return _gather(dataset.iter_rows(), plan.num_actors, progress)
            except (ray.exceptions.RayError, ExecutionTimeoutError, SystemError) as error:
                raise _plain(error) from error
            finally:
                del dataset
                gc.collect()  # a failed run's actors keep their CPUs until the dataset is collected


def _rows_made_here(
    documents: Sequence[DocumentRef],
    prepared: Prepare,
    settings: Settings,
    target: tuple[Generation, Store],
    contextualize: MakeComplete | None,
) -> Iterator[dict[str, Any]]:
    """The stages without Ray."""
    import pyarrow as pa

    generation, store = target
    embed = EmbedChunks(*_embedder_arguments(settings, usable_cpus()))
    for rows in _portions(prepared(asdict(ref)) for ref in documents):
        batch = pa.Table.from_pylist(rows)
        if contextualize is not None:
            batch = add_prefixes(batch, lambda: store, settings.context, contextualize)
        yield from write_batch(embed(batch), lambda: store, generation).to_pylist()


def _portions(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Few of them, if not one: small files may hold much text."""
    portion: list[dict[str, Any]] = []
    num_chars = 0
    for row in rows:
        portion.append(row)
        num_chars += len(row["sections"])
        if num_chars > PORTION_CHARS:
            yield portion
            portion, num_chars = [], 0
    if portion:
        yield portion


def _gather(rows: Iterable[dict[str, Any]], num_actors: int, progress: Progress) -> JobResult:
    """What the written rows say, as they come. Raises DatabaseError for the first that was not written."""
    result, times = JobResult(), _BusyTime(num_actors)
    for row in rows:
        if row["lost"]:
            raise DatabaseError(f"lost the database: {row['lost']}; run the command again, what was done is kept")
        progress.update(1)
        result.num_chunks += row["num_chunks"]
        result.num_truncated += row["num_truncated"]
        result.prefixes.add(PrefixCounts(**json.loads(row["prefixes"])))
        times.add(row["embed_start"], row["embed_end"])
        if row["error"]:
            result.failures.append(Failure(row["source"], row["error"], row["content_hash"], row["seconds"]))
    result.embed_busy = times.share()
    return result


def _source(documents: Sequence[DocumentRef], num_blocks: int, settings: Settings) -> Any:
    """The rows of the listed documents; with their bytes, where other machines cannot read this one's files."""
    import pyarrow as pa
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    timeout_s = NO_PREFIX_TIMEOUT_S if settings.context.llm else NO_PROGRESS_TIMEOUT_S
    context.execution_no_progress_timeout_s = timeout_s  # read when the Dataset is built
    # Blocks of Arrow at once: as Python objects the rows of a million documents would take half a gigabyte.
    ends = [len(documents) * (block + 1) // num_blocks for block in range(num_blocks)]
    blocks = [
        pa.Table.from_pylist([asdict(ref) for ref in documents[start:end]]) for start, end in pairwise([0, *ends])
    ]
    rows = ray.data.from_arrow(blocks)
    if num_hosts() == 1 or settings.ray.shared_files:
        return rows
    if settings.database_url is None:
        raise ResourceError(
            "a cluster of several machines needs a PostgreSQL that all of them reach, found the embedded one;"
            " set DATABASE_URL"
        )
    if ray.util.client.ray.is_connected():
        raise ResourceError(
            f"{settings.ray.address}: this machine is none of the cluster's, whose tasks cannot read its files; run on"
            " one of them with RAG_RAY__ADDRESS=auto, or set RAG_RAY__SHARED_FILES"
        )
    # Tasks on this machine, which has the files. Without a CPU, or a head node that has none would never run them.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    readers = ray.data.TaskPoolStrategy(size=min(num_blocks, MAX_READ_TASKS))
    return rows.map(_with_content, num_cpus=0, scheduling_strategy=here, compute=readers)


def _with_content(row: dict[str, Any]) -> dict[str, Any]:
    """A listed document with its bytes in place of its path, or with the reason why it cannot be read."""
    ref = DocumentRef(**row)
    if ref.path is None or is_remote(ref.path):
        return row
    try:
        return row | {"path": None, "content": read_document(ref).content, "start": 0, "end": None}
    except ExtractionError as error:
        return row | {"error": str(error)}


def _with_prefixes(rows: Any, num_blocks: int, config: ContextConfig, url: str, complete: MakeComplete) -> Any:
    """Rows of documents with their chunks -> the same with prefixes, by few tasks that share the requests at once."""
    import ray

    num_tasks = min(MAX_PREFIX_TASKS, config.concurrency, num_blocks)  # more than blocks, and Ray warns
    shared = config.model_copy(update={"concurrency": config.concurrency // num_tasks})
    return rows.map_batches(
        partial(situate, url=url, config=shared, complete=complete),
        batch_format="pyarrow",
        batch_size=None,  # block by block
        compute=ray.data.TaskPoolStrategy(size=num_tasks),
        num_cpus=TASK_CPUS,
    )


def _embedded(rows: Any, batch_size: int, plan: EmbedPlan, settings: Settings) -> Any:
    """Rows of documents with their chunks -> the same with embeddings."""
    import ray

    return rows.map_batches(
        EmbedChunks,
        fn_constructor_args=_embedder_arguments(settings, plan.threads),
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=plan.num_actors),
        num_cpus=plan.num_cpus,
        num_gpus=plan.num_gpus or None,
    )


def _embedder_arguments(settings: Settings, threads: int) -> tuple[Any, ...]:
    to_cut = [settings.chunk] if needs_embedder(settings.chunk) else []
    return (settings.embed, settings.home, threads, *to_cut)


class _BusyTime:
    """How much of the time between their first and last batch the actors computed."""

    def __init__(self, num_actors: int) -> None:
        self.num_actors = num_actors
        self.batches: set[tuple[float, float]] = set()

    def add(self, start: float, end: float) -> None:
        self.batches.add((start, end))

    def share(self) -> float:
        if not self.batches:
            return 0.0
        elapsed = max(end for _, end in self.batches) - min(start for start, _ in self.batches)
        busy = sum(end - start for start, end in self.batches)
        return round(min(1.0, busy / max(1e-9, elapsed * self.num_actors)), 3)


def _plain(error: BaseException) -> RagError:
    """What went wrong in a worker, as one line. Ray tells it only in a traceback, with its own advice appended."""
    traceback = str(error).partition("\n\nThe above exception was the direct cause")[0]
    reason = next((line for line in reversed(traceback.splitlines()) if line.strip()), type(error).__name__).strip()
    if reason.startswith("rag.errors."):  # ours says what to do
        return RagError(reason.partition(": ")[2])
    return RagError(f"the ingestion job stopped: {reason[:300]}; run the command again, what was done is kept")

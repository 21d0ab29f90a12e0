"""The HNSW index of a generation: its parameters, what is recorded of it, when it is built or measured again."""

import logging

import psutil
import pytest
from toy_corpus import document, new_generation, unit_vectors

from rag.config import IndexConfig, Settings, load_settings
from rag.errors import ConfigError
from rag.index import hnsw
from rag.index.generations import find_generation
from rag.index.hnsw import Parameters, choose_parameters, graph_mb, update_hnsw
from rag.index.store import Generation, Store
from rag.index.vectors import measure_recall, nearest


@pytest.fixture
def generation(store: Store, settings: Settings) -> Generation:
    """1,500 chunks."""
    generation = new_generation(store, settings.collection, 1)
    store.write_documents(generation, [document("a", [f"chunk {i}" for i in range(1500)])])
    return generation


def again(store: Store, generation: Generation) -> Generation:
    return find_generation(store, generation.generation_id)


def indexes(store: Store, generation: Generation) -> list[str]:
    with store.pool.connection() as conn:
        rows = conn.execute(
            "select indexname from pg_indexes where tablename = %s and indexdef like '%%hnsw%%'",
            [f"chunks_{generation.generation_id}"],
        )
        return [row[0].partition("hnsw_")[2] for row in rows]


def plan(store: Store, generation: Generation, vectors: str) -> str:
    dim = generation.dim
    with store.pool.connection() as conn:
        return str(
            conn.execute(
                f"explain select 1 from chunks_{generation.generation_id} order by"
                f" embedding::{vectors}({dim}) <#> array_fill(0.1::real, array[{dim}])::{vectors}({dim}) limit 10"
            ).fetchall()
        )


@pytest.mark.parametrize(
    ("num_chunks", "dim", "config", "chosen"),
    [
        (1_000, 384, {}, Parameters("halfvec", 16, 64)),
        (500_000, 384, {}, Parameters("halfvec", 16, 128)),
        (5_000_000, 384, {}, Parameters("halfvec", 24, 200)),
        (1_000, 2000, {"vectors": "vector"}, Parameters("vector", 16, 64)),
        (1_000, 2001, {"vectors": "vector"}, Parameters("halfvec", 16, 64)),
        (1_000, 4000, {}, Parameters("halfvec", 16, 64)),
        (1_000, 4001, {}, None),
        (1_000, 384, {"m": 48}, Parameters("halfvec", 48, 96)),
        (1_000, 384, {"ef_construction": 20}, Parameters("halfvec", 10, 20)),
        (5_000_000, 384, {"m": 8, "ef_construction": 300}, Parameters("halfvec", 8, 300)),
    ],
)
def test_parameters_are_chosen_by_size_and_what_is_configured_wins(
    num_chunks: int, dim: int, config: dict[str, object], chosen: Parameters | None
) -> None:
    assert choose_parameters(num_chunks, dim, IndexConfig(**config)) == chosen


def test_parameters_that_pgvector_refuses_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"ef_construction \(30\) must be at least twice m \(16\)"):
        load_settings(index={"m": 16, "ef_construction": 30})


def test_hnsw_finds_what_the_exact_scan_finds_and_the_stats_tell_how_it_was_built(
    store: Store, generation: Generation
) -> None:
    stats = update_hnsw(store, generation, IndexConfig(), ef_search=80)
    assert stats["recall@10"] >= 0.95
    assert {
        name: stats[name] for name in ("vectors", "m", "ef_construction", "hnsw_chunks", "ef_search", "notice")
    } == {
        "vectors": "halfvec",
        "m": 16,
        "ef_construction": 64,
        "hnsw_chunks": 1500,
        "ef_search": 80,
        "notice": "",
    }
    assert stats["hnsw_bytes"] > 100_000
    assert "hnsw" in plan(store, generation, "halfvec")
    assert update_hnsw(store, again(store, generation), IndexConfig(), ef_search=80) == {}  # there already


def test_fewer_than_1000_chunks_and_more_than_4000_dimensions_are_searched_exactly(
    store: Store, settings: Settings
) -> None:
    small = new_generation(store, settings.collection, 1)
    store.write_documents(small, [document("a", [f"chunk {i}" for i in range(999)])])
    assert update_hnsw(store, small, IndexConfig(), ef_search=100) == {}
    wide = new_generation(store, settings.collection, 2, dim=4001)
    texts = [f"chunk {i}" for i in range(1000)]
    store.write_documents(wide, [document("a", texts, dim=4001)])
    assert update_hnsw(store, wide, IndexConfig(), ef_search=100) == {
        "notice": "searched exactly: 4001 dimensions, HNSW has 4000 at most"
    }
    hits = nearest(store, wide, document("a", texts, dim=4001).embeddings[7], k=3)
    assert hits[0][1].text == "chunk 7"


def test_other_parameters_replace_the_index_and_readers_follow(store: Store, generation: Generation) -> None:
    update_hnsw(store, generation, IndexConfig(), ef_search=100)
    assert indexes(store, generation) == ["halfvec_16_64"]
    config = IndexConfig(vectors="vector", m=8, ef_construction=40)
    stats = update_hnsw(store, again(store, generation), config, ef_search=100)
    assert (stats["vectors"], stats["m"], stats["ef_construction"]) == ("vector", 8, 40)
    assert indexes(store, generation) == ["vector_8_40"]
    assert "hnsw" in plan(store, generation, "vector")
    query = unit_vectors(1, 5)[0]
    found = [row.chunk_id for _, row in nearest(store, again(store, generation), query, k=5)]
    assert found == [row.chunk_id for _, row in nearest(store, generation, query, k=5, exact=True)]
    assert update_hnsw(store, again(store, generation), IndexConfig(), ef_search=100) == {}  # nothing else is asked


def test_recall_is_measured_again_when_a_generation_has_grown_by_half(store: Store, generation: Generation) -> None:
    update_hnsw(store, generation, IndexConfig(), ef_search=100)
    generation = again(store, generation)
    store.write_documents(generation, [document("b", [f"more {i}" for i in range(600)])])
    assert update_hnsw(store, generation, IndexConfig(), ef_search=100) == {}
    store.write_documents(generation, [document("c", [f"most {i}" for i in range(200)])])
    stats = update_hnsw(store, generation, IndexConfig(), ef_search=100)
    assert set(stats) == {"recall@10", "ef_search", "recall_chunks"}
    assert stats["recall_chunks"] == 2300


def test_an_index_that_finds_too_little_is_built_again_with_more_candidates_and_then_warned_of(
    store: Store, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    wide = new_generation(store, settings.collection, 1, dim=256)  # random vectors have no neighbourhoods
    store.write_documents(wide, [document("a", [f"chunk {i}" for i in range(2000)], dim=256)])
    with caplog.at_level(logging.WARNING):
        stats = update_hnsw(store, wide, IndexConfig(m=4), ef_search=10)
    assert (stats["m"], stats["ef_construction"]) == (4, 256)
    assert stats["recall@10"] < 0.95
    assert "with search.ef_search 10; raise it, or set index.ef_construction" in caplog.text
    assert update_hnsw(store, again(store, wide), IndexConfig(m=4), ef_search=10) == {}  # and not a third time


def test_a_measurement_tells_how_it_was_made_and_scans_no_more_vectors_than_are_allowed(
    store: Store, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    update_hnsw(store, generation, IndexConfig(), ef_search=100)
    asked = []

    def measure_recall(conn: object, g: Generation, k: int, num_queries: int, ef_search: int) -> float:
        asked.append((k, num_queries, ef_search))
        return 0.98765

    monkeypatch.setattr(hnsw, "measure_recall", measure_recall)
    monkeypatch.setattr(hnsw, "MEASURED_VECTORS", 1500 * 20)
    with store.pool.connection() as conn:
        measured = hnsw.measure_hnsw(conn, again(store, generation), 1500, ef_search=40)
    assert asked == [(10, 20, 40)]
    assert measured == {"recall@10": 0.9877, "ef_search": 40, "recall_chunks": 1500}
    assert measured.items() <= again(store, generation).stats.items()


def test_recall_counts_equal_chunks_as_equal(store: Store, settings: Settings) -> None:
    copies = new_generation(store, settings.collection, 1)
    texts = [f"chunk {i}" for i in range(30)]
    for name in "abc":  # equal vectors under three names
        d = document("same", texts)
        renamed = document(name, texts)
        store.write_documents(copies, [type(d)(**(vars(renamed) | {"embeddings": d.embeddings}))])
    with store.pool.connection() as conn:
        assert measure_recall(conn, copies) == 1.0


def test_a_graph_that_does_not_fit_its_memory_is_noted(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = new_generation(store, settings.collection, 1, dim=512)
    store.write_documents(big, [document("a", [f"chunk {i}" for i in range(1200)], dim=512)])
    parameters = Parameters("halfvec", 2, 4)
    with store.pool.connection() as conn:
        conn.execute("set maintenance_work_mem = '1MB'")
        monkeypatch.setattr(hnsw, "graph_mb", lambda *_: 0)
        stats = hnsw.create_hnsw(conn, big, parameters)
    assert stats["notice"].startswith("hnsw graph no longer fits into maintenance_work_mem after ")
    assert int(stats["notice"].split()[-2]) == pytest.approx(2**20 / (512 * 2 + 200 + 32 * 2), rel=0.15)


def test_the_memory_asked_for_is_what_the_graph_takes() -> None:
    # pgvector 0.8.6, 384 dimensions: 5,665 (halfvec, m 16), 3,730 (vector, 16), 4,211 (halfvec, 32) chunks in 8 MB
    for parameters, num_chunks in (
        (Parameters("halfvec", 16, 64), 5665),
        (Parameters("vector", 16, 64), 3730),
        (Parameters("halfvec", 32, 64), 4211),
    ):
        assert graph_mb(num_chunks, 384, parameters) - 8 == pytest.approx(8 * 1.1, rel=0.01)


def test_too_little_shared_memory_costs_the_parallel_build_and_nothing_else(
    store: Store, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_mb = psutil.disk_usage("/dev/shm").total // 2**20
    monkeypatch.setattr(hnsw, "graph_mb", lambda *_: free_mb + 1024)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 2**60}))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    with store.pool.connection() as conn:
        conn.execute(f"alter table chunks_{generation.generation_id} set (parallel_workers = 1)")
    stats = update_hnsw(store, generation, IndexConfig(), ef_search=100)
    assert stats["notice"] == "built by one process: the server has too little shared memory"
    assert stats["recall@10"] >= 0.95

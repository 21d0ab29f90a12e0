"""A tiny dataset through the real index, the real embedder and the real retriever."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from toy_dataset import make_dataset

import rag
from rag.config import Settings, load_settings
from rag.errors import ConfigError, SourceError
from rag.evaluate.corpus import Corpus, collection_name, prepare_corpus
from rag.evaluate.dataset import Dataset, load_dataset
from rag.evaluate.retrieval import Plan, RunReport, compare_runs, evaluate, fold, report_json, retrieve, run
from rag.evaluate.statistics import Interval
from rag.index.build import ingest
from rag.index.generations import live_generation
from rag.index.ledger import last_run
from rag.index.store import Store
from rag.records import Hit
from rag.search.retrieve import Retriever, SearchResult, open_retriever

DATA = Path(os.environ.get("MEASURING_DATA", Path(rag.__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def base(home: Path, database_url: str) -> Settings:
    return load_settings(home=home, chunk={"size": 200, "overlap": 0})


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(make_dataset(tmp_path_factory.mktemp("beir") / "toy"), "test")


@pytest.fixture(scope="module")
def corpus(toy: Dataset, base: Settings) -> Corpus:
    return prepare_corpus(toy, base)


@pytest.fixture(scope="module")
def retriever(base: Settings, corpus: Corpus) -> Iterator[Retriever]:
    retriever = open_retriever(base)
    yield retriever
    retriever.store.close()


def test_a_corpus_is_ingested_with_prefixes_where_an_llm_is_set(toy: Dataset, base: Settings) -> None:
    away = {"base_url": "http://127.0.0.1:9/v1", "max_retries": 0}
    settings = base.model_copy(
        update={
            "context": base.context.model_copy(update={"llm": "gpt-4o-mini"}),
            "llm": base.llm.model_copy(update=away),
        }
    )
    corpus = prepare_corpus(toy, settings, "with-prefixes")
    assert corpus.config["context"]["llm"] == "gpt-4o-mini"
    assert corpus.chunks > 0


def test_a_row_is_one_document_with_one_titled_section(store: Store, toy: Dataset, corpus: Corpus) -> None:
    with store.pool.connection() as conn:
        rows = conn.execute(
            "select s.source, s.title, count(*) over (partition by doc_id) from sections s"
            " join collections using (collection_id) where name = %s",
            [corpus.collection],
        ).fetchall()
    assert sorted((toy.section_id(source), title, count) for source, title, count in rows) == [
        ("7", "Quartz", 1),
        ("penguin #1", "Emperor penguins", 1),
        ("seal", "Weddell seals", 1),
        ("station", "McMurdo", 1),
        ("whale", "Blue whales", 1),
    ]


def test_a_document_without_text_is_told_and_counts_as_not_found(
    toy: Dataset, corpus: Corpus, retriever: Retriever
) -> None:
    assert (corpus.documents, corpus.failed, corpus.missing) == (5, 1, 1)
    recall = evaluate(retriever, toy, corpus.collection, ["semantic"]).runs["semantic"].per_query["R@100"]
    assert recall == [1, 1, 0.5, 0]


def test_a_second_time_nothing_is_embedded_wherever_the_folder_is_now(
    toy: Dataset, corpus: Corpus, base: Settings, store: Store, tmp_path: Path
) -> None:
    moved = load_dataset(Path(shutil.copytree(toy.folder, tmp_path / "toy")), "test")
    assert prepare_corpus(moved, base) == corpus
    found = last_run(store, live_generation(store, corpus.collection))
    assert found is not None
    assert (found.documents["seen"], found.documents["unchanged"], found.chunks_embedded) == (6, 5, 0)


def test_the_run_has_every_section_once_best_first(toy: Dataset, corpus: Corpus, retriever: Retriever) -> None:
    found = run(retriever, toy, corpus.collection, "semantic")
    assert list(found) == ["dive", "found", "krill", "nothing"]
    assert sorted(found["krill"]) == ["7", "penguin #1", "seal", "station", "whale"]
    assert [next(iter(found[query])) for query in ("dive", "found", "krill")] == ["penguin #1", "station", "whale"]
    assert found["nothing"] == {}
    assert all(list(r.values()) == sorted(r.values(), reverse=True) for r in found.values())


def test_more_chunks_are_asked_for_until_there_are_enough_sections(
    toy: Dataset, corpus: Corpus, retriever: Retriever
) -> None:
    assert corpus.chunks > 20  # nearly all of them of one document, which a query for krill meets first
    found = retrieve(retriever, toy, corpus.collection, "semantic", Plan(k=3, prompt_k=4))["krill"]
    assert len(found.ranking) == 3
    assert found.prompted == ("whale",) * 4
    assert set(found.timings_ms) == {"embed", "semantic", "search"}


def test_a_section_ranks_where_its_best_chunk_ranks(toy: Dataset) -> None:
    hits = [("b", 0.9), ("a", 0.8), ("b", 0.7), ("c", 0.6)]
    result = SearchResult(
        "q", "c", tuple(Hit(i, s, str(i), f"file:///x?id={d}", "", "", 0, 0) for i, (d, s) in enumerate(hits)), {}
    )
    assert list(fold(result, toy, 2).items()) == [("b", 0.9), ("a", 0.8)]


def test_the_report_has_the_promised_shape(toy: Dataset, corpus: Corpus, retriever: Retriever) -> None:
    report = evaluate(retriever, toy, corpus.collection, ["semantic"])
    shown = json.loads(json.dumps(report_json(report)))
    assert (shown["dataset"], shown["split"], shown["queries"], shown["comparisons"]) == ("toy", "test", 4, [])
    semantic = shown["runs"]["semantic"]
    metrics = ["nDCG@10", "R@1", "R@4", "R@10", "R@100", "RR@10", "AP", "retrieval_score"]
    assert list(semantic) == [*metrics, "ms_p50", "ms_p95", "stages"]
    assert semantic["R@1"]["mean"] == (1 + 1 + 0.5 + 0) / 4
    assert semantic["retrieval_score"] == {"mean": 0.75, "low": 0.25, "high": 1.0}
    assert list(semantic["stages"]) == ["embed", "semantic"]
    assert 0 < semantic["stages"]["embed"]["p50"] < semantic["ms_p50"] <= semantic["ms_p95"]
    assert set(asdict(corpus)) >= {"collection", "index_id", "model", "config"}


def test_each_pair_of_modes_is_compared_by_each_metric() -> None:
    values = {"x": {"AP": [1.0, 0.5], "R@1": [1.0, 0.0]}, "y": {"AP": [0.0, 0.5], "R@1": [1.0, 0.0]}}
    runs = {name: RunReport({"AP": Interval(0, 0, 0)}, v, {}, {}) for name, v in (values | {"z": values["x"]}).items()}
    found = [(c.a, c.b, c.metric, c.result.difference, c.result.p) for c in compare_runs(runs)]
    assert found == [
        ("x", "y", "AP", 0.5, 1),
        ("x", "y", "R@1", 0, 1),
        ("x", "z", "AP", 0, 1),
        ("x", "z", "R@1", 0, 1),
        ("y", "z", "AP", -0.5, 1),
        ("y", "z", "R@1", 0, 1),
    ]


def test_a_named_collection_is_searched_as_it_is(toy: Dataset, base: Settings, store: Store) -> None:
    mine = base.model_copy(update={"collection": "eval-as-it-is"})
    ingest([str(toy.folder / "corpus.jsonl")], mine)
    other_chunks = load_settings(home=base.home, chunk={"size": 500, "overlap": 0})
    found = prepare_corpus(toy, other_chunks, "eval-as-it-is")
    assert (found.config["chunk"]["size"], found.documents, found.missing) == (200, 5, 1)


def test_a_named_collection_that_is_not_there_is_made(toy: Dataset, base: Settings) -> None:
    assert prepare_corpus(toy, base, "eval-made").documents == 5


def test_a_collection_of_something_else_is_refused(toy: Dataset, base: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Cooking\n\nBoil the potatoes.")
    ingest([str(tmp_path)], base.model_copy(update={"collection": "eval-cooking"}))
    with pytest.raises(
        SourceError, match="'eval-cooking': expected sections that dataset toy judges, such as '7', found"
    ):
        prepare_corpus(toy, base, "eval-cooking")


def test_a_source_is_a_corpus_too(base: Settings, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "json-api")
    (folder / "corpus.jsonl").unlink()
    (folder / "dataset.json").write_text('{"source": "python:json"}')
    (folder / "queries.jsonl").write_text('{"_id": "1", "text": "serialize an object to a JSON formatted str"}\n')
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n1\tpython:json.dumps\t1\n")
    dataset = load_dataset(folder, "dev")
    corpus = prepare_corpus(dataset, base)
    assert (corpus.missing, corpus.collection) == (0, dataset.collection)
    retriever = open_retriever(base)
    try:
        found = evaluate(retriever, dataset, corpus.collection, ["semantic"]).runs["semantic"]
    finally:
        retriever.store.close()
    assert found.per_query["R@4"] == found.per_query["retrieval_score"] == [1]


def test_homes_that_share_a_database_have_collections_of_their_own(toy: Dataset, base: Settings) -> None:
    one = load_settings(home="/a", database_url="postgresql://h/d")
    two = load_settings(home="/b", database_url="postgresql://h/d")
    assert len({collection_name(toy, settings) for settings in (base, one, two)}) == 3


def test_a_mode_that_does_not_exist_is_refused(toy: Dataset, corpus: Corpus, retriever: Retriever) -> None:
    with pytest.raises(ConfigError, match="found 'psychic'"):
        evaluate(retriever, toy, corpus.collection, ["psychic"])


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the measuring data")
@pytest.mark.parametrize(
    ("name", "split", "queries"),
    [("scifact", "train", 809), ("faire", "train", 575), ("faire", "eval", 73), ("cranfield", "test", 225)]
    + [("pubmedqa", "train", 500)],
)
def test_sets_as_they_are_published_are_read(name: str, split: str, queries: int) -> None:
    dataset = load_dataset(DATA / name, split)
    assert len(dataset.queries) == len(dataset.qrels) == queries
    assert dataset.judged

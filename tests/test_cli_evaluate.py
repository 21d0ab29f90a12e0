"""`rag evaluate retrieval` as a user runs it."""

import json
from pathlib import Path

import pytest
from command import rag
from toy_dataset import make_dataset

from rag.cli_evaluate import table
from rag.evaluate.corpus import Corpus
from rag.evaluate.retrieval import Comparison, Report, RunReport
from rag.evaluate.statistics import Difference, Interval

MEANS = {name: Interval(0.382, 0.351, 0.413) for name in ("nDCG@10", "R@1", "retrieval_score")}
RUN = RunReport(MEANS, {}, {"embed": (7.3, 12.04), "semantic": (8, 9), "search": (None, None)}, {})
CORPUS = Corpus("toy-123", 1, "all-MiniLM-L6-v2", {}, 1398, 3000, 2, 0)


def test_it_ingests_measures_and_writes_a_run(home: Path, database_url: str, tmp_path: Path) -> None:
    folder = str(make_dataset(tmp_path / "toy-cli"))
    run_file = tmp_path / "run.trec"
    first = rag(
        "evaluate",
        "retrieval",
        "--dataset",
        folder,
        "--mode",
        "semantic",
        "--run-file",
        str(run_file),
        "--json",
        home=home,
    )
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert (found["dataset"], found["split"], found["queries"]) == ("toy-cli", "test", 4)
    assert found["runs"]["semantic"]["RR@10"]["mean"] == 0.75
    assert found["corpus"]["failed"] == 1
    assert run_file.read_text().startswith("dive Q0 penguin%20#1 1 0.")
    again = rag("evaluate", "retrieval", "--dataset", folder, "--mode", "semantic", "-k", "10", home=home)
    assert (again.returncode, "ingest:" in again.stderr) == (0, False)
    lines = again.stdout.splitlines()
    assert lines[0].startswith("toy-cli test: 4 queries; collection toy-cli-")
    assert lines[1].startswith("1 not ingested; `rag status --failures -c toy-cli-")
    assert lines[2] == "1 relevant section is not in the collection and counts as not found"
    assert lines[4].split() == ["semantic"]
    assert lines[6].split()[:2] == ["R@1", "0.625"]
    assert not any(line.startswith("R@100") for line in lines)


def test_a_weight_is_tuned_and_kept_with_the_collection(home: Path, database_url: str, tmp_path: Path) -> None:
    folder = str(make_dataset(tmp_path / "toy-tuned"))
    done = rag("evaluate", "retrieval", "--dataset", folder, "--tune", "-k", "10", home=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("search.weight stays 0.", "search.weight is now "))
    again = rag("evaluate", "retrieval", "--dataset", folder, "--tune", "--json", home=home)
    tuned = json.loads(again.stdout)["tuned"]
    assert str(tuned["before"]) in done.stdout
    assert set(map(float, tuned["means"])) >= {0.0, 0.5, 1.0}
    refused = rag("evaluate", "retrieval", "--dataset", folder, "--tune", home=home, RAG_SEARCH__WEIGHT="0.3")
    assert "search.weight is set (0.3)" in refused.stderr


@pytest.mark.parametrize(("args", "wanted"), [([], "llm"), (["--rerank", "none"], "none")])
def test_the_report_names_the_reranker_that_ran(
    home: Path, database_url: str, tmp_path: Path, args: list[str], wanted: str
) -> None:
    folder = str(make_dataset(tmp_path / "toy-reranked"))
    llm = {"RAG_LLM__NAME": "m", "RAG_LLM__BASE_URL": "http://127.0.0.1:9/v1", "RAG_LLM__MAX_RETRIES": "0"}
    done = rag(
        *("evaluate", "retrieval", "--dataset", folder, "-k", "5", "--json", *args),
        home=home,
        RAG_RERANK__NAME="llm",
        **llm,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rerank"] == wanted
    assert ("rerank" in found["runs"]["hybrid"]["stages"]) == (wanted == "llm")


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--dataset", "/no/such/folder"], 1, "found no folder; check the path"),
        (["--dataset", "TOY", "--split", "dev"], 1, "expected qrels/dev.tsv, found test; choose one with --split"),
        (["--dataset", "TOY", "--mode", "semantic,"], 2, "--mode: expected names separated by commas, each once"),
        (["--dataset", "TOY", "--mode", "semantic,semantic"], 2, "each once, found 'semantic,semantic'"),
        (
            ["--dataset", "TOY", "--mode", "psychic"],
            2,
            "--mode: expected hybrid, semantic, lexical, perhaps with +RERANKER; found 'psychic'",
        ),
        (
            ["--dataset", "TOY", "--rerank", "x"],
            2,
            "rerank.name: expected one of none, topics:FOLDER, cross-encoder:NAME, llm; found 'x'",
        ),
        (["--dataset", "TOY", "--run-file", "/no/such/run"], 2, "found no folder /no/such; choose another"),
    ],
)
def test_unusable_input_is_one_clear_line(
    home: Path, tmp_path: Path, args: list[str], status: int, message: str
) -> None:
    toy = str(make_dataset(tmp_path / "toy"))
    done = rag("evaluate", "retrieval", *[toy if arg == "TOY" else arg for arg in args], home=home)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_modes_stand_side_by_side_within_100_columns() -> None:
    comparison = Comparison("hybrid", "semantic", "nDCG@10", Difference(0.04, 0.0204, 0.0611, 1 / 10_001))
    runs = {"hybrid": RUN, "semantic": RUN, "lexical": RUN}
    shown = table(
        Report("toy", "test", 225, runs, (comparison, Comparison("hybrid", "semantic", "AP", comparison.result))),
        CORPUS,
    )
    assert shown == [
        "toy test: 225 queries; collection toy-123, 1398 documents, 3000 chunks",
        "2 not ingested; `rag status --failures -c toy-123` tells why",
        "",
        "                                      hybrid              semantic               lexical",
        "nDCG@10                 0.382 [0.351, 0.413]  0.382 [0.351, 0.413]  0.382 [0.351, 0.413]",
        "R@1                     0.382 [0.351, 0.413]  0.382 [0.351, 0.413]  0.382 [0.351, 0.413]",
        "retrieval_score         0.382 [0.351, 0.413]  0.382 [0.351, 0.413]  0.382 [0.351, 0.413]",
        "embed ms p50/p95                  7.3 / 12.0            7.3 / 12.0            7.3 / 12.0",
        "semantic ms p50/p95                8.0 / 9.0             8.0 / 9.0             8.0 / 9.0",
        "search ms p50/p95                          -                     -                     -",
        "",
        "hybrid - semantic: nDCG@10 +0.040 [+0.020, +0.061], p < 0.001",
    ]


def test_more_modes_than_fit_stand_below_each_other() -> None:
    report = Report("toy", "test", 2, {f"hybrid+reranker-{n}-of-this-length": RUN for n in range(5)}, ())
    shown = table(report, CORPUS)
    assert max(map(len, shown)) <= 100
    assert sum("reranker" in line for line in shown) == 3


def test_help_shows_an_example(home: Path) -> None:
    assert "rag evaluate retrieval --dataset" in rag("evaluate", "retrieval", "--help", home=home).stdout

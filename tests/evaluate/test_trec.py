"""Runs as trec_eval reads them."""

from pathlib import Path

import ir_measures
import pytest

from rag.errors import ConfigError
from rag.evaluate.measures import measure
from rag.evaluate.trec import check_folder, run_path, write_run


def test_a_line_is_query_q0_document_rank_score_tag(tmp_path: Path) -> None:
    write_run(tmp_path / "run.trec", {"q1": {"a": 0.75, "b": 0.5}, "q2": {}, "q3": {"a": 0.5}}, "hybrid")
    assert (tmp_path / "run.trec").read_text().splitlines() == [
        "q1 Q0 a 1 0.75 hybrid",
        "q1 Q0 b 2 0.5 hybrid",
        "q3 Q0 a 1 0.5 hybrid",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["run.trec"]


def test_blanks_within_ids_are_percent_encoded_and_nothing_else_is(tmp_path: Path) -> None:
    write_run(tmp_path / "r", {"q 1": {"a b\tc": 1.0, "https://x/?q=ü%20#y": 0.5}}, "a tag")
    assert (tmp_path / "r").read_text().splitlines() == [
        "q%201 Q0 a%20b%09c 1 1 a%20tag",
        "q%201 Q0 https://x/?q=ü%20#y 2 0.5 a%20tag",
    ]


def test_trec_eval_finds_in_the_file_what_we_measured(tmp_path: Path) -> None:
    run = {"q1": {"z": 0.5, "a": 0.5, "b": 0.5}, "q2": {"c": 0.1, "d": 0.10000000001}}
    qrels = {"q1": {"a": 1}, "q2": {"c": 1}}
    write_run(tmp_path / "run.trec", run, "t")
    read = ir_measures.read_trec_run(str(tmp_path / "run.trec"))
    found = ir_measures.calc_aggregate([ir_measures.RR @ 10], qrels, list(read))
    assert found == {ir_measures.RR @ 10: 0.75}
    assert measure(run, qrels, 100)["RR@10"] == [0.5, 1]


def test_each_mode_has_its_file() -> None:
    assert run_path(Path("x/run.trec"), "hybrid", 1) == Path("x/run.trec")
    assert run_path(Path("x/run.trec"), "hybrid", 2) == Path("x/run.hybrid.trec")
    assert run_path(Path("x/run"), "hybrid+org/model", 2) == Path("x/run.hybrid+org_model")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a file in a folder that is there, found no folder"):
        check_folder(tmp_path / "no" / "run.trec")
    with pytest.raises(ConfigError, match="found a folder; choose another"):
        check_folder(tmp_path)
    check_folder(tmp_path / "run.trec")
    with pytest.raises(ConfigError, match="expected a file to write the run to: No such file"):
        write_run(tmp_path / "no" / "run.trec", {}, "t")

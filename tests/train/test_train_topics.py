"""The training of topics: labels, folds, figures; and the command as a user runs it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from command import rag

import rag as package
from rag.cli_train import print_report
from rag.errors import SourceError
from rag.search.rerank.topic_model import TopicModel
from rag.search.rerank.topic_rule import PathRule, TableRule
from rag.search.rerank.topics import load_topic_reranker
from rag.train.topic_tables import cluster
from rag.train.topics import (
    Example,
    Margins,
    TopicOptions,
    Trial,
    calibration_error,
    fit_scale,
    fit_topics,
    group_questions,
    label,
    measure,
    read_examples,
)

DATA = Path(os.environ.get("MEASURING_DATA", Path(package.__file__).parents[2] / "shared" / "data"))
RAY_QUESTIONS = DATA / "llm_applications" / "topic_train.jsonl"
RAY_RULE = PathRule("https://docs.ray.io/", 3)
TINY = TopicOptions(min_share=0.1, folds=2)


def examples_of(*counts: tuple[str, int]) -> list[Example]:
    return [Example(f"{topic} {n}?", f"d/{topic}/{n}.md") for topic, count in counts for n in range(count)]


def test_a_small_topic_becomes_other_and_an_unknown_source_none() -> None:
    examples = [*examples_of(("a", 30), ("b", 10), ("c", 2), ("e", 2)), Example("?", "elsewhere/x")]
    labels = label(examples, PathRule("d/", 1), TINY)
    assert {topic: labels.count(topic) for topic in {*labels}} == {"a": 30, "b": 10, "other": 4, None: 1}


def test_what_is_left_over_must_be_enough_for_the_folds_or_is_left_out() -> None:
    labels = label(examples_of(("a", 30), ("b", 10), ("c", 3)), PathRule("d/", 1), TINY)
    assert {topic: labels.count(topic) for topic in {*labels}} == {"a": 30, "b": 10, None: 3}


def test_one_topic_is_nothing_to_learn() -> None:
    with pytest.raises(SourceError, match="expected two topics or more with 4 questions each, found a in 30 questions"):
        fit_topics(examples_of(("a", 30)), PathRule("d/", 1), TINY)


def test_two_topics_without_other_are_told_apart() -> None:
    trained = fit_topics(examples_of(("penguin", 12), ("seal", 12)), PathRule("d/", 1), TINY)
    assert trained.model.topics == ("penguin", "seal")
    assert [trained.model.predict(f"a {animal}?")[0] for animal in ("penguin", "seal")] == ["penguin", "seal"]
    assert trained.report["f1"]["mean"] == 1
    assert trained.report["baseline"] == {"topic": "penguin", "accuracy": 0.5, "f1": 0.3333}


def test_questions_that_are_nearly_the_same_are_one_group() -> None:
    questions = [
        "What is the default batch size of map_batches?",
        "what is the default batch size of map batches",
        "How deep do penguins dive?",
        "What is the default batch_size of map_batches ?",
    ]
    groups = group_questions(questions).tolist()
    assert groups[0] == groups[1] == groups[3] != groups[2]


def test_a_group_is_held_out_as_a_whole() -> None:
    questions = [f"{animal} {n // 2}" for animal in ("penguin", "seal") for n in range(20)]
    groups = np.arange(40) // 2
    folds = Trial(questions, np.repeat([0, 1], 20), 2, TINY).held_out_margins(groups).folds
    assert (folds[0::2] == folds[1::2]).all() and set(folds.tolist()) == {0, 1}


def test_the_scale_makes_probabilities_those_that_are_observed() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(20_000, 3))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (chances.cumsum(axis=1) < draw.random((20_000, 1))).sum(axis=1)
    assert fit_scale(logits / 4, targets) == pytest.approx(4, rel=0.05)


def test_few_questions_that_are_all_told_apart_do_not_make_certain() -> None:
    margins = np.where(np.arange(20)[:, None] % 2 == [0, 1], 1.0, -1.0)
    top = 1 / (1 + np.exp(-2 * fit_scale(margins, np.arange(20) % 2)))
    assert 0.95 < top < 0.99


def test_the_calibration_error_is_the_mean_gap_of_ten_bins() -> None:
    probabilities = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    is_right = np.array([True, True, True, False, True, False])
    assert calibration_error(probabilities, is_right) == pytest.approx(0.2 * 4 / 6 + 0.05 * 2 / 6)
    assert calibration_error(np.array([1.0]), np.array([True])) == 0


def test_figures_are_of_the_folds_and_the_baseline_is_the_largest_topic() -> None:
    targets = np.array([0, 0, 0, 1, 0, 0, 0, 1])
    margins = np.where(targets[:, None] == [0, 1], 2.0, -2.0)
    margins[3] = [2, -2]  # one of the second topic is taken for the first
    report = measure(Margins(margins, np.repeat([0, 1], 4)), targets, ["a", "other"])
    assert report["accuracy"] == {"mean": 0.875, "std": 0.1768}
    assert report["baseline"] == {"topic": "a", "accuracy": 0.75, "f1": 0.6429}
    assert report["f1_by_topic"] == {"a": 0.9231, "other": 0.6667}
    assert report["thresholds"][0] == {"threshold": 0.5, "moved": 0.875, "precision": 0.8571}  # `other` moves nothing


def test_clusters_are_numbered_by_size_and_the_same_each_time() -> None:
    near = np.random.default_rng(0).normal(scale=0.01, size=(9, 4))
    embeddings = np.eye(4)[[2, 0, 0, 0, 2, 0, 0, 1, 1]] + near
    topics = cluster([f"s{i}" for i in range(9)], embeddings, 3, seed=0)
    assert [topics[f"s{i}"][-1] for i in range(9)] in (list("211121133"), list("311131122"))
    assert topics == cluster([f"s{i}" for i in range(9)], embeddings, 3, seed=0)


def test_a_table_that_knows_half_of_the_sources_trains_on_that_half() -> None:
    examples = examples_of(("penguin", 24), ("seal", 24))
    table = TableRule({example.source: example.source.split("/")[1] for example in examples[::2]})
    report = fit_topics(examples, table, TINY).report
    assert (report["questions"], report["left_out"]) == (24, 24)


@pytest.mark.parametrize("line", ["{", "[]", '{"question": "a"}', '{"question": "a", "source": 1}'])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "a", "source": "b", "more": 1}\n\n' + line + "\n")
    with pytest.raises(SourceError, match=r"data.jsonl:3: expected \{\"question\""):
        read_examples(path)


def test_the_command_trains_saves_and_prints_what_it_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    lines = [{"question": e.question, "source": e.source} for e in examples_of(("penguin", 12), ("seal", 12))]
    data.write_text("\n".join(map(json.dumps, lines)))
    folder = tmp_path / "model"
    args = ["--prefix", "d/", "--folds", "2", "--threshold", "0.8", "--out", str(folder), "--json"]
    done = rag("train", "topics", str(data), *args, home=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    model = load_topic_reranker(str(folder)).model
    assert report == {"folder": str(folder), "threshold": 0.8, **model.report}
    assert (report["questions"], report["topics"]) == (24, {"penguin": 12, "seal": 12})
    print_report(report, folder)
    assert "weighted F1 1.000 ± 0.000   always penguin: 0.333" in capsys.readouterr().out


def test_the_command_wants_one_way_to_tell_topics(tmp_path: Path) -> None:
    done = rag("train", "topics", "x.jsonl", "--out", "y", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: expected one of --prefix, --metadata and --clusters; choose what a topic is\n"


@pytest.fixture(scope="module")
def ray_questions() -> list[Example]:
    return read_examples(RAY_QUESTIONS)


@pytest.fixture(scope="module")
def ray_trial(ray_questions: list[Example]) -> tuple[Trial, list[str]]:
    labels = [topic or "" for topic in label(ray_questions, RAY_RULE, TopicOptions())]
    topics = sorted(set(labels))
    targets = np.array([topics.index(topic) for topic in labels])
    return Trial([example.question for example in ray_questions], targets, len(topics), TopicOptions()), topics


@pytest.mark.skipif(not RAY_QUESTIONS.is_file(), reason="needs the measuring data")
def test_the_ray_questions_have_the_nine_topics_of_the_reference(ray_trial: tuple[Trial, list[str]]) -> None:
    assert ray_trial[1] == [
        *("cluster", "data", "other", "ray-core", "ray-observability", "rllib", "serve", "train", "tune")
    ]


@pytest.mark.skipif(not RAY_QUESTIONS.is_file(), reason="needs the measuring data")
def test_held_out_ray_questions_are_told_apart_from_the_question_alone(ray_trial: tuple[Trial, list[str]]) -> None:
    trial, topics = ray_trial
    margins = trial.held_out_margins(group_questions(trial.questions))
    report = measure(margins, trial.targets, topics)
    assert report["f1"]["mean"] >= 0.84
    assert report["baseline"]["f1"] < 0.1
    assert report["calibration_error"] < 0.04


@pytest.mark.skipif(not RAY_QUESTIONS.is_file(), reason="needs the measuring data")
def test_the_reference_s_eight_sanity_questions_pass(ray_trial: tuple[Trial, list[str]]) -> None:
    """As its notebook lists them, spelling included: the likeliest topic must be the expected one."""
    expected = {
        "How to train a train an LLM using DeepSpeed?": "train",
        "How does autoscaling work in a Ray Serve application?": "serve",
        "How to find the best checkpoint from the trial directory?": "tune",
        "How do I avoid my dataset shuffling during a ray.data.map_batches?": "data",
        "how to push a custom module to ray which is using by Actor?": "ray-core",
        "How would you compare Spark, Ray, Dask?": "other",
        "How do I enable Ray debug logs?": "ray-observability",
        "How do I set a maximum episode length when training with Rllib": "rllib",
    }
    trial, topics = ray_trial
    fitted = trial.fit(np.arange(len(trial.questions)))
    model = TopicModel(tuple(topics), RAY_RULE, 0.9, *fitted, scale=1.0)
    assert {question: model.predict(question)[0] for question in expected} == expected

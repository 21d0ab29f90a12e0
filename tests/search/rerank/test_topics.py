"""The reranker, its rule, and a model's folder; the model is trained on made questions, in a second."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import ConfigError, ModelError
from rag.records import Hit
from rag.search.rerank.topic_model import TopicModel, load_topics, plain_words, save_topics
from rag.search.rerank.topic_rule import PathRule, TableRule, rule_from_json
from rag.search.rerank.topics import TopicReranker, load_topic_reranker
from rag.train.topics import Example, TopicOptions, fit_topics

RULE = PathRule("https://zoo.org/docs/", 1)
ANIMALS = {"penguins": ["krill", "eggs", "ice", "feathers"], "seals": ["fur", "flippers", "pups", "whiskers"]}


@pytest.fixture(scope="module")
def model() -> TopicModel:
    examples = [
        Example(f"{ask} the {thing} of {animal}{end}", f"https://zoo.org/docs/{animal}/{thing}.html#{n}")
        for animal, things in ANIMALS.items()
        for thing in things
        for n, (ask, end) in enumerate([("What are", "?"), ("Tell me about", ""), ("Where are", " now?"), ("Why", "")])
    ]
    examples += [Example(f"How do I buy ticket {n}?", f"https://zoo.org/docs/shop-{n}/a.html") for n in range(12)]
    return fit_topics(examples, RULE, TopicOptions(min_share=0.2)).model


@pytest.fixture
def folder(model: TopicModel, tmp_path: Path) -> Path:
    save_topics(model, tmp_path / "model")
    return tmp_path / "model"


def hits_of(*paths: str) -> list[Hit]:
    sources = [f"https://zoo.org/docs/{path}" for path in paths]
    return [Hit(rank, 1 / rank, f"id-{rank}", source, "", "", 0, 0) for rank, source in enumerate(sources, 1)]


def order(hits: list[Hit]) -> list[str]:
    return [hit.source.removeprefix("https://zoo.org/docs/") for hit in hits]


def test_a_path_segment_behind_the_prefix_is_the_topic() -> None:
    rule = PathRule("https://docs.ray.io/", 3, {"tune.html": "tune"})
    assert rule.topic("https://docs.ray.io/en/master/ray-core/actors.html#actors") == "ray-core"
    assert rule.topic("https://docs.ray.io/en/latest/train/api.html?x=/a/b") == "train"
    assert rule.topic("https://docs.ray.io/en/master/tune.html#citing") == "tune"
    assert rule.topic("https://docs.ray.io/en/master") is None
    assert rule.topic("https://docs.ray.io/en/master/#x") is None
    assert rule.topic("https://elsewhere.org/en/master/train/") is None


def test_a_table_knows_sections_and_documents() -> None:
    rule = TableRule({"a.md": "x", "b.md#one": "y"})
    assert [rule.topic(source) for source in ("a.md", "a.md#any", "b.md#one", "b.md#two")] == ["x", "x", "y", None]


@pytest.mark.parametrize("rule", [PathRule("p/", 2, {"a": "b"}), TableRule({"a#b": "c"})])
def test_a_rule_is_read_back(rule: PathRule | TableRule) -> None:
    assert rule_from_json(json.loads(json.dumps(rule.to_json()))) == rule


@given(st.text(max_size=80), st.integers(1, 5))
def test_any_source_has_a_topic_or_none(source: str, segment: int) -> None:
    topic = PathRule("", segment).topic(source)
    assert topic is None or (topic in source and "/" not in topic)


def test_a_segment_counts_from_one() -> None:
    with pytest.raises(ConfigError, match="expected a segment of 1 or more, found 0"):
        PathRule("p", 0)


def test_names_are_read_as_words() -> None:
    assert plain_words("Why RayDeepSpeedStrategy.batch_size?") == "why ray deep speed strategy batch size"


def test_hits_of_the_predicted_topic_come_first_and_both_groups_keep_their_order(model: TopicModel) -> None:
    hits = hits_of("seals/a", "penguins/b", "elsewhere/c", "penguins/d")
    reranked = TopicReranker(model, threshold=0.5).rerank("Which krill do penguins like?", hits)
    assert order(reranked) == ["penguins/b", "penguins/d", "seals/a", "elsewhere/c"]
    probability = model.predict("Which krill do penguins like?")[1]
    assert [(hit.rank, hit.score) for hit in reranked] == [(1, probability), (2, probability), (3, 0), (4, 0)]


def test_a_probability_of_the_threshold_moves_and_one_below_does_not(model: TopicModel) -> None:
    hits, question = hits_of("seals/a", "penguins/b"), "Which krill do penguins like?"
    probability = model.predict(question)[1]
    assert order(TopicReranker(model, threshold=probability).rerank(question, hits)) == ["penguins/b", "seals/a"]
    assert TopicReranker(model, threshold=np.nextafter(probability, 2)).rerank(question, hits) == hits


def test_the_topic_other_moves_nothing(model: TopicModel) -> None:
    hits = hits_of("seals/a", "shop-1/b")
    assert model.predict("How do I buy a ticket?")[0] == "other"
    assert TopicReranker(model, threshold=0).rerank("How do I buy a ticket?", hits) == hits


def test_hits_without_the_topic_and_no_hits_stay_as_they_are(model: TopicModel) -> None:
    reranker, hits = TopicReranker(model, threshold=0.1), hits_of("seals/a", "shop-1/b")
    assert reranker.rerank("Which krill do penguins like?", hits) == hits
    assert reranker.rerank("Which krill do penguins like?", []) == []


@pytest.mark.parametrize("question", ["", "   ", "???", "\ud800", "日本語", "a" * 100_000])
def test_any_question_has_probabilities_that_sum_to_one(model: TopicModel, question: str) -> None:
    row = model.probabilities([question])[0]
    assert row.sum() == pytest.approx(1) and (row > 0).all()


def test_a_threshold_that_is_no_probability_is_refused(model: TopicModel) -> None:
    with pytest.raises(ConfigError, match="rerank.threshold: expected a probability, 0 to 1, found 1.5"):
        TopicReranker(model, threshold=1.5)


def test_a_saved_model_predicts_what_it_did(model: TopicModel, folder: Path) -> None:
    questions = ["Which krill do penguins like?", "Do seals have fur?", "", "ticketz"]
    loaded = load_topics(folder)
    np.testing.assert_allclose(loaded.probabilities(questions), model.probabilities(questions), atol=1e-6)
    assert (loaded.topics, loaded.rule, loaded.threshold) == (("other", "penguins", "seals"), RULE, 0.9)
    assert loaded.report == json.loads(json.dumps(model.report))
    assert sorted(path.name for path in folder.iterdir()) == ["topics.json", "weights.npz"]


def test_a_reranker_has_the_threshold_of_its_model_unless_told(folder: Path) -> None:
    assert load_topic_reranker(str(folder)).threshold == 0.9
    assert load_topic_reranker(str(folder), 0.3).threshold == 0.3


def edit(folder: Path, **changes: object) -> None:
    path = folder / "topics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"topics": ["penguins", "seals"]},
        {"topics": ["a", "a", "b"]},
        {"words": []},
        {"words": ["x"]},
        {"pieces": [1]},
        {"scale": -1},
        {"scale": "NaN"},
        {"threshold": 2},
        {"rule": {"kind": "eval"}},
        {"rule": {"kind": "table", "topics": {"a": 1}}},
        {"format": 2},
        {"report": 7},
    ],
)
def test_a_folder_that_does_not_fit_together_is_refused_in_one_line(folder: Path, changes: dict[str, object]) -> None:
    edit(folder, **changes)
    with pytest.raises(ModelError) as error:
        load_topics(folder)
    assert "train" in str(error.value) and "\n" not in str(error.value)


def test_weights_of_another_training_are_refused(folder: Path) -> None:
    np.savez(folder / "weights.npz", weights=np.ones((3, 3)), intercepts=np.ones(3), idf=np.ones(3))
    with pytest.raises(ModelError, match="weights.npz is not the one topics.json was written with"):
        load_topics(folder)


def test_a_pickle_in_the_place_of_the_weights_is_not_run(folder: Path) -> None:
    """np.savez pickles an array of objects; loading one would run what it says."""
    import hashlib

    np.savez(folder / "weights.npz", weights=np.array([{"run": "me"}], dtype=object), intercepts=1, idf=1)
    edit(folder, weights=hashlib.sha256((folder / "weights.npz").read_bytes()).hexdigest())
    with pytest.raises(ModelError, match="Object arrays cannot be loaded"):
        load_topics(folder)


def test_no_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a folder that `rag train topics` wrote, found FileNotFoundError"):
        load_topic_reranker(str(tmp_path / "none"))


def test_a_training_that_was_killed_leaves_no_folder_that_loads(folder: Path, tmp_path: Path) -> None:
    half = Path(shutil.copytree(folder, tmp_path / "half"))
    (half / "topics.json").rename(half / "topics.json.part")
    with pytest.raises(ModelError):
        load_topics(half)


def test_a_prediction_takes_less_than_ten_milliseconds(folder: Path) -> None:
    """Of the process's time, the fastest of some: other work on the machine does not count."""
    model, times_s = load_topics(folder), []
    for _ in range(20):
        start = time.process_time()
        model.predict("Which krill do penguins like best, and where do they find it in the winter?")
        times_s.append(time.process_time() - start)
    assert min(times_s) < 0.01


def test_threads_get_the_probabilities_of_one(folder: Path) -> None:
    model = load_topics(folder)
    questions = [
        f"Which {thing} {n} do {animal} have?" for n in range(10) for animal in ANIMALS for thing in ("eggs", "fur")
    ]
    expected = [model.predict(question) for question in questions]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(model.predict, questions)) == expected

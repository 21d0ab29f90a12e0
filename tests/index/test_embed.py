import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.catalog import EMBEDDERS, EmbedderFacts
from rag.config import EmbedConfig
from rag.errors import IndexMismatch, ModelError
from rag.index import embed as embed_module
from rag.index import encoder as encoder_module
from rag.index import precision as precision_module
from rag.index.bert import read_bert
from rag.index.embed import find_fingerprint, group_by_tokens, load_embedder, usable_cpus
from rag.index.fingerprint import KNOWN_FINGERPRINTS, Fingerprint
from rag.index.model_files import find_folder
from rag.index.precision import fastest_precision

FP32 = EmbedConfig(precision="fp32")
TEXTS = [
    "Ray is a framework for scaling Python applications.",
    "",
    "  spaces around, and UPPER case  ",
    "An actor is a stateful worker. " * 60,  # longer than the model reads
    "Ein Aktor ist ein Prozess mit Zustand; 日本語 too.",
    *(f"Task number {i} " + "waits for objects in the store " * (i % 7) for i in range(40)),
]
PRINT = Fingerprint("a/model", "a1b2c3d4" + "0" * 56, "mean", True, "", "", 384, 256)


@pytest.fixture
def packaged_folder() -> Path:
    return find_folder("all-MiniLM-L6-v2")


def test_the_fingerprint_that_is_known_beforehand_is_the_loaded_model_s() -> None:
    assert find_fingerprint(EmbedConfig()) == load_embedder(FP32).fingerprint
    assert find_fingerprint(EmbedConfig()) in KNOWN_FINGERPRINTS.values()


def test_a_fingerprint_is_found_without_loading_a_model_that_was_loaded_before(
    packaged_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EmbedConfig(model=str(copy_of(packaged_folder, tmp_path / "copy")), precision="fp32")
    first = find_fingerprint(config, tmp_path)
    monkeypatch.setattr(embed_module, "load_embedder", None)
    assert find_fingerprint(config, tmp_path) == first
    assert first.difference(find_fingerprint(EmbedConfig())) == ""


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def sentence_transformers_encode(folder: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    with encoder_module.quiet():
        model = SentenceTransformer(str(folder), device="cpu")
        return model.encode(texts, normalize_embeddings=True)


def test_fp32_equals_what_sentence_transformers_encodes_in_the_same_order(packaged_folder):
    ours = load_embedder(FP32).embed(TEXTS, "passage")
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, sentence_transformers_encode(packaged_folder, TEXTS), atol=1e-5)


def test_a_plain_bert_is_loaded_without_sentence_transformers(packaged_folder):
    source = (
        "import sys; from rag.index.embed import load_embedder; from rag.config import EmbedConfig;"
        "load_embedder(EmbedConfig(precision='fp32')).embed(['a'], 'query');"
        "print([name for name in ('torch', 'transformers', 'sentence_transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", source], capture_output=True, text=True).stdout == "['torch']\n"


@pytest.mark.parametrize("file", ["config.json", "1_Pooling/config.json", "modules.json", "tokenizer_config.json"])
def test_what_is_not_a_plain_bert_is_left_to_sentence_transformers(file, packaged_folder, tmp_path):
    folder = copy_of(packaged_folder, tmp_path / "m")
    assert read_bert(folder) is not None
    changes = {
        "config.json": ('"gelu"', '"gelu_new"'),
        "1_Pooling/config.json": ('"pooling_mode_max_tokens": false', '"pooling_mode_max_tokens": true'),
        "modules.json": ("models.Normalize", "models.Dense"),
        "tokenizer_config.json": ('"do_lower_case": true', '"do_lower_case": false'),
    }
    text = (folder / file).read_text()
    (folder / file).write_text(text.replace(*changes[file]))
    assert (folder / file).read_text() != text
    assert read_bert(folder) is None


@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_both_ways_of_pooling_equal_sentence_transformers_own(mode, packaged_folder, tmp_path):
    folder = copy_of(packaged_folder, tmp_path / mode)
    pooling = {"embedding_dimension": 384, "pooling_mode": mode, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    ours = load_embedder(EmbedConfig(model=str(folder), precision="fp32"))
    assert ours.fingerprint.pooling == mode
    theirs = sentence_transformers_encode(folder, TEXTS)
    np.testing.assert_allclose(ours.embed(TEXTS, "passage"), theirs, atol=1e-5)


def test_weights_under_other_names_are_loaded_by_sentence_transformers(packaged_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy_of(packaged_folder, tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): one for name, one in weights.items()}
    save_file(
        {name.replace("LayerNorm.bias", "LayerNorm.beta"): one for name, one in renamed.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    ours = load_embedder(EmbedConfig(model=str(folder), precision="fp32"))
    np.testing.assert_allclose(ours.embed(TEXTS, "passage"), load_embedder(FP32).embed(TEXTS, "passage"), atol=1e-5)


def test_auto_is_a_precision_that_keeps_the_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr(embed_module, "_loaded", {})  # another test may have loaded it, and measured, already
    chosen = load_embedder(EmbedConfig(), tmp_path)
    cosines = (chosen.embed(TEXTS, "passage") * load_embedder(FP32).embed(TEXTS, "passage")).sum(axis=1)
    assert cosines.min() >= 0.9995
    assert list(json.loads((tmp_path / "precision.json").read_text()).values()) == [chosen.precision]


def test_each_row_has_norm_1_and_is_its_text_wherever_it_stands():
    embedder = load_embedder(FP32)
    forwards, backwards = embedder.embed(TEXTS, "passage"), embedder.embed(TEXTS[::-1], "passage")
    np.testing.assert_allclose(np.linalg.norm(forwards, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(forwards, backwards[::-1], atol=1e-5)


def test_no_texts_are_no_rows():
    assert load_embedder(FP32).embed([], "query").shape == (0, 384)
    assert load_embedder(FP32).count_tokens([]) == []


def test_a_lone_surrogate_is_embedded_as_a_question_mark():
    embedder = load_embedder(FP32)
    np.testing.assert_array_equal(embedder.embed(["a \ud800 b"], "query"), embedder.embed(["a ? b"], "query"))


def test_count_tokens_counts_what_the_model_would_cut_off():
    embedder = load_embedder(FP32)
    assert embedder.count_tokens(["hello world", "", "word " * 400]) == [4, 2, 402]
    assert embedder.fingerprint.max_tokens == 256


def test_a_query_and_a_passage_get_the_prefixes_of_the_catalogue(packaged_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(EMBEDDERS, "tiny-e5", EmbedderFacts("x/tiny-e5", "query: ", "passage: "))
    folder = copy_of(packaged_folder, tmp_path / "tiny-e5")
    prefixed, plain = load_embedder(EmbedConfig(model=str(folder), precision="fp32")), load_embedder(FP32)
    np.testing.assert_allclose(prefixed.embed(["cats"], "query"), plain.embed(["query: cats"], "query"), atol=1e-6)
    np.testing.assert_allclose(
        prefixed.embed(["cats"], "passage"), plain.embed(["passage: cats"], "passage"), atol=1e-6
    )
    found = plain.fingerprint.difference(prefixed.fingerprint)
    assert found == "query_prefix: '' != 'query: '; passage_prefix: '' != 'passage: '"


def test_a_model_is_loaded_once_under_all_its_names_and_by_eight_threads():
    names = ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"] * 4
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda name: load_embedder(EmbedConfig(model=name, precision="fp32")), names))
    assert len({id(embedder) for embedder in loaded}) == 1


def test_threads_may_share_an_embedder():
    embedder = load_embedder(FP32)
    expected = embedder.embed(TEXTS[:8], "passage")
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda _: embedder.embed(TEXTS[:8], "passage"), range(4)):
            np.testing.assert_allclose(rows, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model", "/no/such/folder", "a b"])
def test_an_unknown_model_is_one_line_that_says_what_is_possible(name):
    with pytest.raises(ModelError, match=r"^unknown model, or no network: expected a packaged name") as error:
        load_embedder(EmbedConfig(model=name))
    assert "\n" not in str(error.value) and repr(name) in str(error.value)


def test_a_folder_without_a_model_is_one_line(tmp_path, capfd):
    with pytest.raises(ModelError, match=r"expected a sentence-transformers text model") as error:
        load_embedder(EmbedConfig(model=str(tmp_path)))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_loading_prints_nothing(packaged_folder, tmp_path, capfd):
    load_embedder(EmbedConfig(model=str(copy_of(packaged_folder, tmp_path / "m")), precision="bf16"))
    assert capfd.readouterr() == ("", "")


def test_openvino_without_the_package_names_the_extra(monkeypatch, packaged_folder, tmp_path):
    monkeypatch.setattr(precision_module, "has_openvino", lambda: False)
    folder = copy_of(packaged_folder, tmp_path / "m")
    with pytest.raises(ModelError, match=r"pip install '\.\[openvino\]'"):
        load_embedder(EmbedConfig(model=str(folder), precision="openvino"))


def test_a_fingerprint_says_what_differs():
    assert PRINT.difference(replace(PRINT)) == ""
    assert PRINT.difference(replace(PRINT, model="/a/copy/of/it")) == ""
    other = replace(PRINT, model="b", weights="c3d4e5f6" + "0" * 56, dim=768)
    assert PRINT.difference(other) == "model: 'a/model' != 'b'; weights: a1b2c3d4… != c3d4e5f6…; dim: 384 != 768"


def test_a_fingerprint_survives_json_and_refuses_other_fields():
    assert Fingerprint.from_json(PRINT.to_json()) == PRINT
    with pytest.raises(IndexMismatch, match="rag ingest"):
        Fingerprint.from_json('{"model": "a"}')


def fake_run(seconds: dict[str, float], rows: dict[str, list[float]], monkeypatch) -> tuple[list, object]:
    """A clock that only `run` moves, and a `run` that takes `seconds` and returns `rows`."""
    clock, calls = [0.0], []
    monkeypatch.setattr(precision_module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(precision_module, "has_openvino", lambda: "openvino" in seconds)
    monkeypatch.setattr(precision_module, "_openvino_version", lambda: "none")

    def run(precision, texts):
        calls.append(precision)
        clock[0] += seconds[precision] * len(texts)
        return np.array([rows[precision]] * len(texts))

    return calls, run


SAME = [1.0, 0.0]


def test_the_fastest_precision_that_keeps_the_vectors_is_chosen(monkeypatch):
    seconds = {"fp32": 3.0, "bf16": 2.0, "openvino": 1.0}
    _, run = fake_run(seconds, {"fp32": SAME, "bf16": SAME, "openvino": SAME}, monkeypatch)
    assert fastest_precision(run, "w", False, None) == "openvino"
    _, run = fake_run(seconds, {"fp32": SAME, "bf16": SAME, "openvino": [0.99, 0.14]}, monkeypatch)
    assert fastest_precision(run, "w", False, None) == "bf16"


def test_a_candidate_twice_as_slow_on_its_first_batch_is_given_up(monkeypatch):
    calls, run = fake_run({"fp32": 1.0, "bf16": 2.5}, {"fp32": SAME, "bf16": SAME}, monkeypatch)
    assert fastest_precision(run, "w", False, None) == "fp32"
    assert calls.count("bf16") == 2


def test_a_candidate_that_cannot_run_is_passed_over(monkeypatch, caplog):
    caplog.set_level("INFO", "rag.index.precision")
    _, run = fake_run({"fp32": 2.0, "bf16": 1.0, "openvino": 0.1}, {"fp32": SAME, "bf16": SAME}, monkeypatch)
    assert fastest_precision(run, "w", False, None) == "bf16"
    assert [record.message for record in caplog.records] == ["precision openvino cannot run here: KeyError: 'openvino'"]


@pytest.mark.parametrize("cached", [None, "{not json", "[]", '"fp32"', "\x00"])
def test_a_choice_is_measured_once_and_a_corrupt_cache_is_rewritten(cached, monkeypatch, tmp_path):
    path = tmp_path / "precision.json"
    if cached is not None:
        path.write_text(cached)
    calls, run = fake_run({"fp32": 2.0, "bf16": 1.0}, {"fp32": SAME, "bf16": SAME}, monkeypatch)
    assert fastest_precision(run, "w", False, tmp_path) == "bf16"
    assert list(json.loads(path.read_text()).values()) == ["bf16"]
    calls.clear()
    assert fastest_precision(run, "w", False, tmp_path) == "bf16"
    assert calls == []


def test_texts_of_like_length_share_a_batch_within_the_budget():
    assert group_by_tokens([3, 1, 9, 2, 30], budget=9) == [[1, 3, 0], [2], [4]]
    assert group_by_tokens([], budget=9) == []


@given(st.lists(st.integers(1, 300)), st.integers(1, 1000))
def test_every_text_is_in_one_batch_and_only_a_lone_text_exceeds_the_budget(lengths, budget):
    groups = group_by_tokens(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= budget


def test_this_process_may_use_a_cpu():
    assert usable_cpus() >= 1

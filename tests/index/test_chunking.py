"""The chunk methods that need the model, with the packaged one; and through the whole job."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.config import ChunkConfig, EmbedConfig, Settings
from rag.errors import ConfigError, ModelError
from rag.index.build import ingest
from rag.index.chunking import check_chunk_size, chunk_with
from rag.index.database import open_database
from rag.index.embed import context_tokens, load_embedder, load_token_spans
from rag.index.generations import generations
from rag.index.store import Store
from rag.records import Section

FP32 = EmbedConfig(precision="fp32")
CATS = "Cats sleep most of the day. A kitten drinks milk. My cat hunts mice in the garden. Its fur is soft and grey."
TAXES = "The tax return is due in May. Interest is paid monthly. A bank lends money against a house. Loans are costly."


@hypothesis.settings(deadline=None)  # the first call loads the model
@given(st.text(max_size=200))
def test_the_tokenizer_alone_finds_the_tokens_that_the_embedder_finds(text):
    assert load_token_spans(EmbedConfig())(text) == load_embedder(FP32).token_spans(text)


def test_token_spans_count_what_count_tokens_counts_but_the_special_ones():
    text = "Tokenisation of Ümläuts, 漢字 and \U0001f600 emoji."
    embedder = load_embedder(FP32)
    assert len(embedder.token_spans(text)) == embedder.count_tokens([text])[0] - 2
    assert context_tokens(FP32, embedder.fingerprint) == 254
    assert context_tokens(FP32, replace(embedder.fingerprint, passage_prefix="passage: ")) == 252


def test_the_tokenizer_alone_loads_no_torch():
    code = (
        "import sys; from rag.config import EmbedConfig; from rag.index.embed import load_token_spans;"
        " load_token_spans(EmbedConfig())('a b'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_without_a_tokenizer_file_is_one_line(tmp_path: Path):
    with pytest.raises(ModelError, match=r"expected a tokenizer.json that can be read"):
        load_token_spans(EmbedConfig(model=str(tmp_path)))


def test_texts_longer_than_the_model_reads_are_marked():
    embedder = load_embedder(FP32)
    rows, is_truncated = embedder.embed_marking(["short", "word " * 254, "word " * 255, ""], "passage")
    assert rows.shape == (4, 384)
    assert is_truncated.tolist() == [False, False, True, False]
    assert embedder.embed_marking([], "passage")[1].tolist() == []


def test_more_tokens_than_the_model_reads_are_refused_and_characters_are_not():
    fingerprint = load_embedder(FP32).fingerprint
    check_chunk_size(ChunkConfig(method="tokens", size=254), FP32, fingerprint)
    check_chunk_size(ChunkConfig(size=5000), FP32, fingerprint)
    with pytest.raises(ConfigError, match="expected at most 254 tokens.*found 255; pass --chunk-size 254 or less"):
        check_chunk_size(ChunkConfig(method="tokens", size=255), FP32, fingerprint)


def test_the_packaged_model_tells_cats_from_taxes_to_within_a_sentence():
    section = Section("s", "T", f"{CATS} {TAXES}")
    found = chunk_with(load_embedder(FP32), [section], ChunkConfig(method="semantic", size=300))
    first, second = (chunk.text for chunk in found)
    assert first in (CATS, f"{CATS} The tax return is due in May.")
    assert f"{first} {second}" == section.text


@pytest.mark.usefixtures("ray_here")
def test_each_method_makes_a_generation_of_its_own_and_semantic_cuts_in_the_actor(
    tmp_path: Path, settings: Settings
) -> None:
    (tmp_path / "pets.txt").write_text(f"{CATS} {TAXES}")
    (tmp_path / "empty.txt").write_text(" \n ")

    def run(**chunk: object) -> tuple[int, int, int]:
        changed = settings.model_copy(update={"chunk": ChunkConfig(**chunk), "embed": FP32})
        report = ingest([str(tmp_path)], changed)
        assert report.documents["failed"] == 1
        return report.index_id, report.chunks_written, report.chunks_truncated

    by_default = run()
    semantic = run(method="semantic", size=300)
    tokens = run(method="tokens", size=50, overlap=0)
    assert [by_default[1:], semantic[1:], tokens[1:]] == [(1, 0), (2, 0), (2, 0)]
    assert run()[0] == by_default[0]  # a stored config without a method is the default one
    with pytest.raises(ConfigError, match="expected at most 254 tokens"):
        run(method="tokens")
    store = Store(open_database(settings))
    configs = [g.config["chunk"] for g in generations(store, settings.collection)]
    assert configs == [
        {"size": 700, "overlap": 50},
        {"method": "semantic", "size": 300, "overlap": 50},
        {"method": "tokens", "size": 50, "overlap": 0},
    ]
    store.close()


@pytest.mark.usefixtures("ray_here")
def test_chunks_that_the_model_reads_in_part_are_counted(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "long.txt").write_text("antidisestablishmentarianism " * 300)
    (tmp_path / "short.txt").write_text("short")
    report = ingest(
        [str(tmp_path)], settings.model_copy(update={"chunk": ChunkConfig(size=5000, overlap=0), "embed": FP32})
    )
    assert (report.chunks_embedded, report.chunks_truncated, report.max_tokens) == (3, 2, 256)

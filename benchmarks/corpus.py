"""Documents and an embedder made here, the same ones on every machine. Knows nothing of what is measured with them.

The documents are Markdown of invented words. The embedder is a real sentence-transformers model, one layer of 32
dimensions with random weights: its vectors mean nothing, but it is loaded, run and fingerprinted as any other, and so
fast that what is left to measure is the pipeline.
"""

import itertools
import random
from pathlib import Path

SYLLABLES = ("ba", "den", "fo", "gir", "ha", "kel", "lu", "mor", "ni", "pas", "ro", "sut", "ta", "vem", "wi", "zo")
WORDS = tuple("".join(pair) for pair in itertools.product(SYLLABLES, repeat=2))
WORDS_IN_A_SECTION = (30, 110)  # 700 characters hold about 115: a section is one chunk


def write_documents(folder: Path, num_documents: int, max_sections: int = 3) -> list[Path]:
    """`num_documents` files of one to `max_sections` sections, a chunk each; the same text at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:06}.md" for i in range(num_documents)]
    for i, path in enumerate(paths):
        path.write_text(document(i, max_sections))
    return paths


def document(number: int, max_sections: int = 3, edition: int = 1) -> str:
    """Another `edition` differs in one section; it has as many chunks as the first."""
    draw = random.Random(number)
    sections = [
        f"## {' '.join(draw.choices(WORDS, k=3))}\n\n{_sentences(draw)}" for _ in range(1 + number % max_sections)
    ]
    if edition > 1:
        sections[0] += f" Edition {edition}."
    return f"# Page {number}\n\n" + "\n\n".join(sections) + "\n"


def _sentences(draw: random.Random) -> str:
    words = draw.choices(WORDS, k=draw.randint(*WORDS_IN_A_SECTION))
    return " ".join(" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, len(words), 12))


def build_model(folder: Path) -> Path:
    """Saves the tiny embedder; its folder is a value for `rag ingest --model`."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{one}" for one in letters)]
    bert = folder / "bert"
    bert.mkdir(parents=True)
    (bert / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(str(bert / "vocab.txt"), model_max_length=256).save_pretrained(bert)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
    )
    BertModel(config).save_pretrained(bert)
    transformer = Transformer(str(bert), max_seq_length=256)
    model = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
    model.save(str(folder / "tiny-embedder"), create_model_card=False)
    return folder / "tiny-embedder"

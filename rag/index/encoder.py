"""The files of a text model in, its parts out: transformer, pooling, tokenizer, and what it says of itself.

Plain BERTs are loaded by `bert`, everything else by sentence-transformers, which takes four seconds longer.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Encoder:
    """A loaded model in fp32 (or the type of its weights), on `device`."""

    transformer: "nn.Module"  # called with the tensors named by `inputs`; [0] are the token embeddings
    pool: "Callable[[Tensor, Tensor], Tensor]"  # (texts, tokens, width) fp32 and the mask -> (texts, dim)
    tokenizer: Any  # a tokenizers.Tokenizer
    inputs: list[str]
    pad_id: int
    pooling: str
    prompts: dict[str, str]
    dim: int
    max_tokens: int
    device: str


def load_encoder(folder: Path, device: str) -> Encoder:
    """Raises whatever the library does where the folder holds no text model."""
    return _load_bert(folder, device) or _load_with_sentence_transformers(folder, device)


def copy_tokenizer(tokenizer: Any) -> Any:
    """Without truncation and padding, which belong to one use of it."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _load_bert(folder: Path, device: str) -> Encoder | None:
    from tokenizers import Tokenizer

    from rag.index.bert import load_bert, read_bert

    spec = read_bert(folder)
    if spec is None:
        return None
    try:
        transformer = load_bert(spec).to(device)
    except (KeyError, RuntimeError):  # weights of other names or shapes, which sentence-transformers may know
        return None
    positions = spec.config["max_position_embeddings"]
    return Encoder(
        transformer=transformer,
        pool=_mean if spec.pooling == "mean" else _first,
        tokenizer=Tokenizer.from_file(str(spec.transformer / "tokenizer.json")),
        inputs=["input_ids", "token_type_ids", "attention_mask"],
        pad_id=spec.config.get("pad_token_id") or 0,
        pooling=spec.pooling,
        prompts=spec.prompts,
        dim=spec.config["hidden_size"],
        max_tokens=min(spec.max_tokens or positions, positions),
        device=device,
    )


def _load_with_sentence_transformers(folder: Path, device: str) -> Encoder:
    with quiet():
        from sentence_transformers import SentenceTransformer

        model: Any = SentenceTransformer(str(folder), device=device, local_files_only=True)
    heads = list(model)[1:]
    poolings = [head for head in heads if type(head).__name__ != "Normalize"]
    if not hasattr(model[0], "auto_model") or any(not getattr(head, "include_prompt", True) for head in poolings):
        raise ValueError("a model without token embeddings, or one that pools without its prompt")

    def pool(tokens: "Tensor", mask: "Tensor") -> "Tensor":
        features = {"token_embeddings": tokens, "attention_mask": mask}
        for head in heads:
            features = head(features)
        return features["sentence_embedding"]

    positions = int(getattr(model[0].auto_model.config, "max_position_embeddings", 512))
    return Encoder(
        transformer=model[0].auto_model,
        pool=pool,
        tokenizer=model.tokenizer.backend_tokenizer,
        inputs=list(model.tokenizer.model_input_names),
        pad_id=model.tokenizer.pad_token_id or 0,
        pooling="+".join(str(getattr(head, "pooling_mode", type(head).__name__)) for head in poolings),
        prompts=model.prompts,
        dim=model.get_embedding_dimension(),
        max_tokens=min(int(model.max_seq_length or positions), positions),
        device=device,
    )


def _mean(tokens: "Tensor", mask: "Tensor") -> "Tensor":
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _first(tokens: "Tensor", mask: "Tensor") -> "Tensor":
    return tokens[:, 0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading draws progress bars and logs advice for people who train; nobody here asked for either."""
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

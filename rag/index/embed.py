"""Texts in, rows of norm 1 out: which model, with which prefix, and in the precision this machine runs fastest.

The model is loaded by sentence-transformers; batching is ours, by tokens and not by rows, so that a short text
does not pay for a long neighbour. Knows nothing of chunks, indexes or Ray. Importing this does not import torch.
"""

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rag.config import EmbedConfig
from rag.errors import IndexMismatch, ModelError
from rag.index.model_files import find_folder, hash_weights, known_facts, module_folders, one_line
from rag.index.precision import (
    Forward,
    check_precision,
    fastest_precision,
    make_forward,
    read_cache,
    replace_cache,
)
from rag.records import to_json

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["query", "passage"]

CPU_BATCH_TOKENS = 1024  # bf16, mixed lengths: 25 % faster than 4096, since less of a batch is padding
CUDA_BATCH_TOKENS = 65_536  # a GPU is filled by width; 64 MiB of activations for 384 dimensions in fp16

_loaded: dict[tuple[Path, str], "Embedder"] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Fingerprint:
    """What makes two embeddings comparable; stored with an index generation."""

    model: str
    weights: str  # sha256 hex of the weight file; of the digests where there are several files
    pooling: str
    normalize: bool
    query_prefix: str
    passage_prefix: str
    dim: int
    max_tokens: int

    def to_json(self) -> str:
        return to_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Fingerprint":
        expected, found = {field.name for field in fields(cls)}, json.loads(text)
        if set(found) != expected:
            raise IndexMismatch(
                f"stored fingerprint: expected the fields {sorted(expected)}, found {sorted(found)};"
                " run `rag ingest` again to rebuild"
            )
        return cls(**found)

    def difference(self, other: "Fingerprint") -> str:
        """What differs, "weights: a1b2c3d4… != c3d4e5f6…; dim: 384 != 768", or "" where nothing does.

        The name counts only where the weights differ: a model copied to another folder is the same model.
        """
        mine, theirs = asdict(self), asdict(other)
        ignored = ("model", "weights") if self.weights == other.weights else ()
        names = [name for name in mine if name not in ignored and mine[name] != theirs[name]]
        return "; ".join(f"{name}: {_short(mine[name])} != {_short(theirs[name])}" for name in names)


# The packaged model's, as `load_embedder` finds it; by name and digest of its files, so that another release is not
# taken for this one. It spares the first ingestion the loading of a model that only its actors need.
KNOWN_FINGERPRINTS = {
    "all-MiniLM-L6-v2 751130bd9ea1478885f14634e04bb5a2e4d49eb4b8ab33ecbbf52c593d9d40ad": Fingerprint(
        model="sentence-transformers/all-MiniLM-L6-v2",
        weights="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        pooling="mean",
        normalize=True,
        query_prefix="",
        passage_prefix="",
        dim=384,
        max_tokens=256,
    )
}


class Embedder:
    """One loaded model. May be used from several threads at once."""

    def __init__(self, model: Any, fingerprint: Fingerprint, precision: str, forward: Forward) -> None:
        self.fingerprint = fingerprint
        self.dim = fingerprint.dim
        self.precision = precision
        self.device = str(model.device)
        self._batch_tokens = CUDA_BATCH_TOKENS if self.device.startswith("cuda") else CPU_BATCH_TOKENS
        self._forward = forward
        self._heads = list(model)[1:]
        self._inputs = model.tokenizer.model_input_names
        self._pad_id = model.tokenizer.pad_token_id or 0
        # Own copies: the model's one changes its truncation at every call, which threads must not share.
        self._counter, self._tokenizer = _copy_tokenizer(model), _copy_tokenizer(model)
        self._tokenizer.enable_truncation(fingerprint.max_tokens)

    def embed(self, texts: Sequence[str], kind: Kind) -> np.ndarray:
        """(len(texts), dim) float32, rows of norm 1, in the order of `texts`."""
        return self.embed_marking(texts, kind)[0]

    def embed_marking(self, texts: Sequence[str], kind: Kind) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `embed`, and which texts are longer than the model reads: (len(texts),) bool."""
        import torch

        fp = self.fingerprint
        prefix = fp.query_prefix if kind == "query" else fp.passage_prefix
        encoded = self._tokenizer.encode_batch_fast([prefix + _valid(text) for text in texts])
        embeddings = np.empty((len(texts), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for group in group_by_tokens([len(one.ids) for one in encoded], self._batch_tokens):
                features = self._forward(self._pad([encoded[i] for i in group]))
                for head in self._heads:
                    features = head(features)
                rows = torch.nn.functional.normalize(features["sentence_embedding"].float(), dim=1)
                embeddings[group] = rows.cpu().numpy()
        is_truncated = [len(one.ids) >= fp.max_tokens and bool(one.overflowing) for one in encoded]
        return embeddings, np.array(is_truncated, dtype=bool)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each whole text, special ones included, no prefix: above `max_tokens` it is truncated."""
        return [len(one.ids) for one in self._counter.encode_batch_fast([_valid(text) for text in texts])]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of the text lies, in characters; special tokens left out."""
        return _token_spans(self._counter, text)

    def _pad(self, batch: Sequence[Any]) -> dict[str, "Tensor"]:
        import torch

        shape = (len(batch), max(len(one.ids) for one in batch))
        ids, types, mask = np.full(shape, self._pad_id), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, one in enumerate(batch):
            num_tokens = len(one.ids)
            ids[row, :num_tokens], types[row, :num_tokens], mask[row, :num_tokens] = one.ids, one.type_ids, 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {name: torch.from_numpy(arrays[name]).to(self.device) for name in arrays if name in self._inputs}


def load_embedder(config: EmbedConfig, cache_dir: Path | None = None) -> Embedder:
    """The embedder of `config`, loaded once per process. `cache_dir` keeps what "auto" measured.

    Uses the threads torch has now: call `torch.set_num_threads(usable_cpus())` first where Ray set one.
    """
    with _lock:
        folder = find_folder(config.model)
        key = (folder, config.precision)
        if key not in _loaded:
            with _quiet():
                _loaded[key] = _load(config, folder, cache_dir)
        return _loaded[key]


def find_fingerprint(config: EmbedConfig, cache_dir: Path | None = None) -> Fingerprint:
    """The embedder's fingerprint, without loading it where that was done before: no torch, a tenth of a second."""
    folder = find_folder(config.model)
    try:
        digest = hashlib.sha256(hash_weights(folder).encode())
        for path in sorted(folder.rglob("*.json")):
            digest.update(path.read_bytes())
        key = f"{config.model} {digest.hexdigest()}"
    except (OSError, ValueError):
        return load_embedder(config, cache_dir).fingerprint  # which says what is wrong with the folder
    cache = cache_dir / "fingerprints.json" if cache_dir else None
    if key in KNOWN_FINGERPRINTS:
        return KNOWN_FINGERPRINTS[key]
    known = read_cache(cache)
    with contextlib.suppress(IndexMismatch, KeyError, ValueError):
        return Fingerprint.from_json(known[key])
    fingerprint = load_embedder(config, cache_dir).fingerprint
    if cache:
        replace_cache(cache, {**known, key: fingerprint.to_json()})
    return fingerprint


def load_token_spans(config: EmbedConfig) -> Callable[[str], list[tuple[int, int]]]:
    """`Embedder.token_spans` of the model, from its tokenizer file alone: no torch, no weights. Raises ModelError."""
    return functools.partial(_token_spans, _load_tokenizer(config.model))


def context_tokens(config: EmbedConfig, fingerprint: Fingerprint) -> int:
    """Tokens of a passage that the model reads, special ones and the prefix not counted. Raises ModelError."""
    tokenizer = _load_tokenizer(config.model)
    num_special: int = tokenizer.num_special_tokens_to_add(False)
    return fingerprint.max_tokens - num_special - len(_token_spans(tokenizer, fingerprint.passage_prefix))


def usable_cpus() -> int:
    """CPUs this process may use: its affinity, or the container's quota where that is less."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        num_cpus = min(num_cpus, math.ceil(int(quota) / int(period)))
    return max(1, num_cpus)


def group_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of texts of like length; longest * count <= budget, save for a text alone that exceeds it."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and lengths[i] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _load(config: EmbedConfig, folder: Path, cache_dir: Path | None) -> Embedder:
    import torch
    from sentence_transformers import SentenceTransformer

    on_gpu = torch.cuda.is_available() and config.precision != "openvino"
    check_precision(config.precision, on_gpu)
    try:
        model = SentenceTransformer(str(folder), device="cuda" if on_gpu else "cpu", local_files_only=True)
        fingerprint = _fingerprint(config.model, folder, model)
    except Exception as error:  # whatever transformers raises for a broken folder
        raise ModelError(
            f"{folder}: expected a sentence-transformers text model, found {one_line(error)}; check `embed.model`"
        ) from error

    @functools.cache  # the fastest was built to be measured
    def build(precision: str) -> Embedder:
        forward = make_forward(model, precision, fingerprint.weights, cache_dir)
        return Embedder(model, fingerprint, precision, forward)

    if config.precision != "auto":
        return build(config.precision)

    def run(precision: str, texts: Sequence[str]) -> np.ndarray:
        return build(precision).embed(texts, "passage")

    return build(fastest_precision(run, fingerprint.weights, on_gpu, cache_dir))


def _fingerprint(name: str, folder: Path, model: Any) -> Fingerprint:
    """A model that the catalogue does not know may carry its own prompts."""
    facts, prompts = known_facts(name), model.prompts
    heads = [module for module in list(model)[1:] if type(module).__name__ != "Normalize"]
    if not hasattr(model[0], "auto_model") or any(not getattr(h, "include_prompt", True) for h in heads):
        raise ValueError("a model without token embeddings, or one that pools without its prompt")
    positions = int(getattr(model[0].auto_model.config, "max_position_embeddings", 512))
    return Fingerprint(
        model=Path(name).name if Path(name).expanduser().is_dir() else facts.hub_id if facts else name,
        weights=hash_weights(folder),
        pooling="+".join(str(getattr(head, "pooling_mode", type(head).__name__)) for head in heads),
        normalize=True,  # always, whether the model has a module for it or not
        query_prefix=facts.query_prefix if facts else prompts.get("query") or "",
        passage_prefix=facts.passage_prefix if facts else prompts.get("document") or "",
        dim=model.get_embedding_dimension(),
        max_tokens=min(int(model.max_seq_length or positions), positions),
    )


def _copy_tokenizer(model: Any) -> Any:
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


@functools.cache
def _load_tokenizer(model: str) -> Any:
    from tokenizers import Tokenizer

    folder = find_folder(model)
    try:
        paths = [path for path in (part / "tokenizer.json" for part in module_folders(folder)) if path.exists()]
        tokenizer = Tokenizer.from_file(str(paths[0] if paths else folder / "tokenizer.json"))
    except Exception as error:  # no such file, or the library's own bare Exception
        raise ModelError(
            f"{folder}: expected a tokenizer.json that can be read, found {one_line(error)};"
            " set chunk.method to another than tokens, or embed.model"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _token_spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = tokenizer.encode(_valid(text), add_special_tokens=False).offsets
    return spans


def _valid(text: str) -> str:
    """The tokenizer refuses lone surrogates, which broken PDFs and JSON do contain."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _short(value: object) -> str:
    """Of a digest, enough to tell two apart."""
    return f"{value[:8]}…" if isinstance(value, str) and len(value) == 64 else repr(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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

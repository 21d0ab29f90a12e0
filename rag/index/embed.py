"""Texts in, rows of norm 1 out: which model, with which prefix, and in the precision this machine runs fastest.

Batches are made by tokens and not by rows, so that a short text does not pay for a long neighbour. Knows nothing of
chunks, indexes or Ray. Importing this does not import torch.
"""

import contextlib
import functools
import hashlib
import math
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rag.config import EmbedConfig
from rag.errors import IndexMismatch, ModelError
from rag.index.encoder import Encoder, copy_tokenizer, load_encoder
from rag.index.fingerprint import KNOWN_FINGERPRINTS, Fingerprint
from rag.index.model_files import find_folder, hash_weights, known_facts, module_folders, one_line
from rag.index.precision import (
    Forward,
    check_precision,
    fastest_precision,
    make_forward,
    read_cache,
    replace_cache,
)
from rag.index.threads import SingleThreads

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["query", "passage"]

CPU_BATCH_TOKENS = 1024  # bf16, mixed lengths: 25 % faster than 4096, since less of a batch is padding
CUDA_BATCH_TOKENS = 65_536  # a GPU is filled by width; 64 MiB of activations for 384 dimensions in fp16

_loaded: dict[tuple[Path, str], "Embedder"] = {}
_lock = threading.Lock()


class Embedder:
    """One loaded model. May be used from several threads at once."""

    def __init__(self, encoder: Encoder, fingerprint: Fingerprint, precision: str, forward: Forward) -> None:
        self.fingerprint = fingerprint
        self.dim = fingerprint.dim
        self.precision = precision
        self.device = encoder.device
        self._batch_tokens = CUDA_BATCH_TOKENS if self.device.startswith("cuda") else CPU_BATCH_TOKENS
        self._forward = forward
        # Two that compute at once would take turns at every operation, and each would take twice as long.
        self._turn = threading.Lock()
        self._threads: SingleThreads | None = None
        self._encoder = encoder
        # Own copies: a tokenizer is changed by its truncation, which threads and models must not share.
        self._counter, self._tokenizer = copy_tokenizer(encoder.tokenizer), copy_tokenizer(encoder.tokenizer)
        self._tokenizer.enable_truncation(fingerprint.max_tokens)

    def embed(self, texts: Sequence[str], kind: Kind) -> np.ndarray:
        """(len(texts), dim) float32, rows of norm 1, in the order of `texts`."""
        return self.embed_marking(texts, kind)[0]

    def embed_marking(self, texts: Sequence[str], kind: Kind) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `embed`, and which texts are longer than the model reads: (len(texts),) bool."""
        import torch

        fp = self.fingerprint
        prefix = fp.query_prefix if kind == "query" else fp.passage_prefix
        encoded = self._tokenizer.encode_batch_fast([prefix + valid_text(text) for text in texts])
        embeddings = np.empty((len(texts), self.dim), dtype=np.float32)
        groups = group_by_tokens([len(one.ids) for one in encoded], self._batch_tokens)

        def run(group: list[int]) -> None:
            with torch.inference_mode():
                batch = self._pad([encoded[i] for i in group])
                rows = self._encoder.pool(self._forward(batch), batch["attention_mask"])
                embeddings[group] = torch.nn.functional.normalize(rows.float(), dim=1).cpu().numpy()

        with self._turn:
            self._run_all(run, groups)
        is_truncated = [len(one.ids) >= fp.max_tokens and bool(one.overflowing) for one in encoded]
        return embeddings, np.array(is_truncated, dtype=bool)

    def _run_all(self, run: Callable[[list[int]], None], groups: list[list[int]]) -> None:
        """Several batches at once, a thread each, which is faster than all threads at one; OpenVINO has its own."""
        import torch

        num_threads = torch.get_num_threads()
        if num_threads == 1 or len(groups) == 1 or self.device != "cpu" or self.precision == "openvino":
            for group in groups:
                run(group)
            return
        if self._threads is None or self._threads.num != num_threads:
            self._threads = SingleThreads()
        self._threads.run(run, groups)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each whole text, special ones included, no prefix: above `max_tokens` it is truncated."""
        return [len(one.ids) for one in self._counter.encode_batch_fast([valid_text(text) for text in texts])]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of the text lies, in characters; special tokens left out."""
        return _token_spans(self._counter, text)

    def _pad(self, batch: Sequence[Any]) -> dict[str, "Tensor"]:
        import torch

        shape = (len(batch), max(len(one.ids) for one in batch))
        ids, types, mask = np.full(shape, self._encoder.pad_id), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, one in enumerate(batch):
            num_tokens = len(one.ids)
            ids[row, :num_tokens], types[row, :num_tokens], mask[row, :num_tokens] = one.ids, one.type_ids, 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        inputs = self._encoder.inputs
        return {name: torch.from_numpy(arrays[name]).to(self.device) for name in arrays if name in inputs}


def load_embedder(config: EmbedConfig, cache_dir: Path | None = None) -> Embedder:
    """The embedder of `config`, loaded once per process. `cache_dir` keeps what "auto" measured.

    Uses the threads torch has now: call `torch.set_num_threads(usable_cpus())` first where Ray set one.
    """
    with _lock:
        folder = find_folder(config.model)
        key = (folder, config.precision)
        if key not in _loaded:
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

    on_gpu = torch.cuda.is_available() and config.precision != "openvino"
    check_precision(config.precision, on_gpu)
    try:
        encoder = load_encoder(folder, "cuda" if on_gpu else "cpu")
        fingerprint = _fingerprint(config.model, folder, encoder)
    except Exception as error:  # whatever transformers raises for a broken folder
        raise ModelError(
            f"{folder}: expected a sentence-transformers text model, found {one_line(error)}; check `embed.model`"
        ) from error

    @functools.cache  # the fastest was built to be measured
    def build(precision: str) -> Embedder:
        forward = make_forward(encoder, precision, fingerprint.weights, cache_dir)
        return Embedder(encoder, fingerprint, precision, forward)

    if config.precision != "auto":
        return build(config.precision)

    def run(precision: str, texts: Sequence[str]) -> np.ndarray:
        return build(precision).embed(texts, "passage")

    return build(fastest_precision(run, fingerprint.weights, on_gpu, cache_dir))


def _fingerprint(name: str, folder: Path, encoder: Encoder) -> Fingerprint:
    """A model that the catalogue does not know may carry its own prompts."""
    facts, prompts = known_facts(name), encoder.prompts
    return Fingerprint(
        model=Path(name).name if Path(name).expanduser().is_dir() else facts.hub_id if facts else name,
        weights=hash_weights(folder),
        pooling=encoder.pooling,
        normalize=True,  # always, whether the model has a module for it or not
        query_prefix=facts.query_prefix if facts else prompts.get("query") or "",
        passage_prefix=facts.passage_prefix if facts else prompts.get("document") or "",
        dim=encoder.dim,
        max_tokens=encoder.max_tokens,
    )


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
    spans: list[tuple[int, int]] = tokenizer.encode(valid_text(text), add_special_tokens=False).offsets
    return spans


def valid_text(text: str) -> str:
    """A tokenizer refuses lone surrogates, which broken PDFs and JSON do contain."""
    return text.encode("utf-8", "replace").decode("utf-8")

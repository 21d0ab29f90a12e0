"""A question and its hits in, the hits by a cross-encoder's scores out: any `CrossEncoder` of sentence-transformers.

A cross-encoder reads the question together with each hit, so it sees more than the distance of two vectors does, and
costs a pass through a transformer a hit. A pair that is longer than the model reads is cut by its tokenizer. Knows
nothing of how the hits were found. Importing this does not import torch.
"""

import copy
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.errors import ModelError
from rag.index.embed import CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS, group_by_tokens, valid_text
from rag.index.encoder import quiet
from rag.index.model_files import find_folder, hash_weights, one_line
from rag.index.precision import check_precision, fastest_precision
from rag.records import Hit
from rag.search.rerank import ranked

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_loaded: dict[tuple[Path, str], "CrossEncoderReranker"] = {}
_lock = threading.Lock()


class CrossEncoderReranker:
    """One loaded model. May be used from several threads at once."""

    def __init__(self, name: str, model: Any, precision: str) -> None:
        self.name = name
        self.precision = precision
        self._model = model
        self._batch_tokens = CUDA_BATCH_TOKENS if model.device.type == "cuda" else CPU_BATCH_TOKENS
        self._tokenizing = threading.Lock()  # a tokenizer is changed by its truncation and padding

    def rerank(self, query: str, hits: Sequence[Hit]) -> list[Hit]:
        """The hits by their scores; as they came where a score is not a number, as of weights that overflow fp16."""
        scores = self.score(query, [hit.context for hit in hits])
        if not np.isfinite(scores).all():
            log.warning("%s: a score is not a number; the hits stay as they were; set rerank.precision=fp32", self.name)
            return list(hits)
        return ranked(hits, scores.tolist())

    def score(self, query: str, texts: Sequence[str]) -> np.ndarray:
        """(len(texts),) float32: what `CrossEncoder.predict` gives for the pairs of the query and each text."""
        import torch

        scores = np.empty(len(texts), dtype=np.float32)
        if not texts:
            return scores
        with self._tokenizing:
            features = self._model.preprocess([(valid_text(query), valid_text(text)) for text in texts])
        mask = features["attention_mask"].bool()
        with torch.inference_mode():
            for group in group_by_tokens(mask.sum(1).tolist(), self._batch_tokens):
                used = mask[group].any(0)  # columns that are padding for all of the group cost time and say nothing
                scores[group] = self._forward({name: _part(value, group, used) for name, value in features.items()})
        return scores

    def _forward(self, batch: dict[str, Any]) -> np.ndarray:
        from sentence_transformers.util import batch_to_device

        scores: Tensor = self._model(batch_to_device(batch, self._model.device))["scores"].float()
        activated: np.ndarray = self._model.activation_fn(scores).reshape(-1).cpu().numpy()
        return activated


def load_cross_encoder(name: str, precision: str = "auto", cache_dir: Path | None = None) -> CrossEncoderReranker:
    """The reranker of a local folder or a hub id, loaded once per process. `cache_dir` keeps what "auto" measured.

    Uses the threads torch has now, as `load_embedder` does. Raises ModelError.
    """
    with _lock:
        folder = _find(name)
        key = (folder, precision)
        if key not in _loaded:
            _loaded[key] = _load(name, folder, precision, cache_dir)
        return _loaded[key]


def _find(name: str) -> Path:
    try:
        return find_folder(name)
    except ModelError as error:
        raise ModelError(
            f"rerank.name: expected a cross-encoder's local folder, or a hub id that can be downloaded;"
            f" found {name!r} ({one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)})"
        ) from error


def _load(name: str, folder: Path, precision: str, cache_dir: Path | None) -> CrossEncoderReranker:
    import torch

    on_gpu = torch.cuda.is_available()
    check_precision(precision, on_gpu)
    try:
        weights = hash_weights(folder)
        with quiet():
            from sentence_transformers import CrossEncoder

            model = CrossEncoder(str(folder), device="cuda" if on_gpu else "cpu", local_files_only=True).eval().float()
        if model.num_labels != 1:
            raise ValueError(f"a classifier of {model.num_labels} classes")
    except Exception as error:  # whatever transformers raises for a broken folder
        raise ModelError(
            f"{folder}: expected a cross-encoder with one score, found {one_line(error)}; check rerank.name"
        ) from error
    build = _builder(f"cross-encoder:{name}", model)
    if precision == "auto":
        precision = fastest_precision(_angles(build), weights, on_gpu, cache_dir)
    return build(precision)


def _builder(name: str, model: Any) -> Callable[[str], CrossEncoderReranker]:
    """The reranker in a precision; the model itself is kept in fp32, for the other precisions are made from it."""
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    built: dict[str, CrossEncoderReranker] = {}

    def build(precision: str) -> CrossEncoderReranker:
        if precision not in built:
            cast = model if precision == "fp32" else copy.deepcopy(model).to(dtypes[precision])
            built[precision] = CrossEncoderReranker(name, cast, precision)
        return built[precision]

    return build


def _angles(build: Callable[[str], CrossEncoderReranker]) -> Callable[[str, Sequence[str]], np.ndarray]:
    """Scores as unit vectors, whose cosines say how far two precisions differ: .999 is .045 of a score."""

    def run(precision: str, texts: Sequence[str]) -> np.ndarray:
        scores = build(precision).score(texts[0], texts)
        return np.stack([np.cos(scores), np.sin(scores)], axis=1)

    return run


def _part(value: Any, rows: list[int], columns: "Tensor") -> Any:
    """Those rows of a tensor with a row a pair, and those columns if it has one a token; anything else as it is."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    picked = value[rows]
    return picked[:, columns] if picked.ndim == 2 and picked.shape[1] == len(columns) else picked

"""How the transformer of an embedder is run: torch or OpenVINO, in the precision that is fastest here.

Which one is fastest depends on the CPU (bf16 is far slower where it is not in hardware), so it is measured once
per machine and remembered. Knows nothing of prefixes, batches or pooling.
"""

import contextlib
import copy
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import random
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.errors import ModelError
from rag.index.encoder import Encoder
from rag.index.model_files import one_line

if TYPE_CHECKING:
    from torch import Tensor

# A padded batch in, (texts, tokens, width) fp32 token embeddings out.
Forward = Callable[[dict[str, "Tensor"]], "Tensor"]
Run = Callable[[str, Sequence[str]], np.ndarray]  # (precision, texts) -> embeddings

MIN_COSINE = 0.999  # to fp32; below it a precision is not the same model any more
GIVE_UP = 2.0  # times as slow as fp32 on its first batch: not worth the rest of the measurement

ROUNDS = 3
CLEARLY = 1.4  # times as fast: one round is enough

log = logging.getLogger(__name__)

_WORDS = re.findall(
    r"\w+",
    "the of and to a in is for that with as on be are by this from or an at which data task cluster node actor"
    " memory object function returns value parameter default configuration scheduling asynchronous replica"
    " deployment request batch dataset column tensor checkpoint training embedding retrieval token database",
)


def make_forward(encoder: Encoder, precision: str, weights: str, cache_dir: Path | None) -> Forward:
    if precision == "openvino":
        return _openvino_forward(encoder, weights, cache_dir)
    return _torch_forward(encoder, precision)


def _torch_forward(encoder: Encoder, precision: str) -> Forward:
    """The transformer in `precision`; what follows it (pooling, norm) is done in fp32."""
    import torch

    from rag.index.linear import pack_linears

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    # Loaded weights may be fp16; the model's own stay as they are, for the other precisions are made from them.
    transformer = copy.deepcopy(encoder.transformer).to(dtype).eval()
    if encoder.device == "cpu":
        pack_linears(transformer)

    def forward(batch: dict[str, "Tensor"]) -> "Tensor":
        tokens: Tensor = transformer(**batch)[0]
        return tokens.float()

    return forward


def _openvino_forward(encoder: Encoder, weights: str, cache_dir: Path | None) -> Forward:
    """The transformer compiled by OpenVINO for the CPU, in bf16 where the CPU has it, on torch's threads."""
    import openvino as ov
    import torch

    core = ov.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if has_bf16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # two actors would be pinned to the same cores
    }
    compiled = core.compile_model(_convert(encoder, weights, cache_dir, core), "CPU", options)
    lock = threading.Lock()  # a compiled model has one request, which threads must not share

    def forward(batch: dict[str, "Tensor"]) -> "Tensor":
        with lock:
            output = compiled({name: tensor.numpy() for name, tensor in batch.items()})[0]
            return torch.from_numpy(output.copy())  # the next call writes into the same memory

    return forward


def _convert(encoder: Encoder, weights: str, cache_dir: Path | None, core: Any) -> Any:
    """Converting takes seconds, so the result is kept in `cache_dir`: a folder that is whole or absent."""
    import openvino as ov
    import torch

    kept = cache_dir / f"openvino-{_openvino_version()}-{weights[:16]}" if cache_dir else None
    if kept and kept.is_dir():
        with contextlib.suppress(RuntimeError):  # damaged: convert again
            return core.read_model(kept / "model.xml")
    ones = {name: torch.ones((2, 8), dtype=torch.int64) for name in encoder.inputs}
    converted = ov.convert_model(encoder.transformer, example_input=ones)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=kept.parent))
        ov.save_model(converted, aside / "model.xml", compress_to_fp16=False)
        shutil.rmtree(kept, ignore_errors=True)
        try:
            aside.rename(kept)
        except OSError:  # another process was first
            shutil.rmtree(aside, ignore_errors=True)
    return converted


def check_precision(precision: str, on_gpu: bool) -> None:
    if precision == "openvino" and not has_openvino():
        raise ModelError("precision openvino: the openvino package is missing; pip install '.[openvino]'")
    if precision == "fp16" and not on_gpu:
        raise ModelError("precision fp16: expected a CUDA device, found none; use auto, fp32 or bf16")


def has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


def _openvino_version() -> str:
    return importlib.metadata.version("openvino") if has_openvino() else "none"


def fastest_precision(run: Run, weights: str, on_gpu: bool, cache_dir: Path | None) -> str:
    """The precision that is fastest here and gives the same vectors; `precision.json` keeps the answer."""
    candidates = ["bf16", "fp16"] if on_gpu else ["bf16", *(["openvino"] if has_openvino() else [])]
    path = cache_dir / "precision.json" if cache_dir else None
    key = _machine(weights, on_gpu)
    with _taking_turns(cache_dir):  # the actors of a machine start together, and would measure each other
        choice = read_cache(path).get(key)
        if choice in ("fp32", *candidates):
            return str(choice)
        choice = _measure(run, candidates)
        if path:
            replace_cache(path, {**read_cache(path), key: choice})
        return choice


@contextlib.contextmanager
def _taking_turns(cache_dir: Path | None) -> Iterator[None]:
    """One process at a time; everybody at once where there is no folder to lock."""
    import fasteners

    lock = None
    with contextlib.suppress(OSError):
        if cache_dir is not None:
            cache_dir.mkdir(parents=True, exist_ok=True)
            lock = fasteners.InterProcessLock(cache_dir / "precision.lock")
            lock.acquire()
    try:
        yield
    finally:
        if lock is not None and lock.acquired:
            lock.release()


def _measure(run: Run, candidates: Sequence[str]) -> str:
    sample = _sample()
    first = sample[:8]
    exact = run("fp32", sample)
    allowed_s = GIVE_UP * _seconds(run, "fp32", first)
    chosen_from = ["fp32"]
    for precision in candidates:
        try:
            run(precision, first)  # the first call compiles
        except Exception as error:  # a model that OpenVINO cannot convert still runs in torch
            log.info("precision %s cannot run here: %s", precision, one_line(error))
            continue
        if _seconds(run, precision, first) > allowed_s:
            continue
        if (run(precision, sample) * exact).sum(axis=1).min() >= MIN_COSINE:
            chosen_from.append(precision)
    # In turns, and again while it is close: a neighbour that is busy for a second must not decide.
    times_s = np.full(len(chosen_from), np.inf)
    for _ in range(ROUNDS):
        times_s = np.minimum(times_s, [_seconds(run, precision, sample) for precision in chosen_from])
        fastest, *others = sorted(times_s)
        if all(fastest * CLEARLY < other for other in others):
            break
    return chosen_from[int(times_s.argmin())]


def _seconds(run: Run, precision: str, texts: Sequence[str]) -> float:
    start = time.perf_counter()
    run(precision, texts)
    return time.perf_counter() - start


def _sample() -> list[str]:
    """16 texts of 8 to 158 words, the same ones everywhere, in an order that mixes the lengths."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(_WORDS, k=num_words)) for num_words in range(8, 168, 10)]
    draw.shuffle(texts)
    return texts


def _machine(weights: str, on_gpu: bool) -> str:
    """What the measurement depends on."""
    import torch

    device = torch.cuda.get_device_name() if on_gpu else _cpu_name()
    return " | ".join([weights, device, f"torch {torch.__version__}", f"openvino {_openvino_version()}"])


def _cpu_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def read_cache(path: Path | None) -> dict[str, str]:
    """{} where there is no file or one that cannot be read: finding out again repairs it."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def replace_cache(path: Path, entries: dict[str, str]) -> None:
    """Whole or absent. A cache that cannot be written costs time, not the job."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent)
        with open(handle, "w") as stream:
            json.dump(entries, stream, indent=1)
        os.replace(aside, path)

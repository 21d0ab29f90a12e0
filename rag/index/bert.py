"""BERT's encoder in plain torch, for the models that are nothing but that: MiniLM, BGE, E5, GTE.

It is loaded in a second where importing transformers and sentence-transformers takes four more, which every
`rag search`, every actor and every small ingestion would pay. `read_bert` says which folders it may serve.

Paper: Devlin et al. 2018, arXiv 1810.04805; weights are named as in the files that transformers writes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from rag.index.linear import LinearAdd, LinearGelu

BY_TEXT_TOKENS = 96


@dataclass(frozen=True)
class BertSpec:
    """A folder that holds a BERT, mean or first-token pooling, and perhaps a normalisation; nothing else."""

    config: dict[str, Any]
    transformer: Path  # where weights and tokenizer lie
    pooling: str  # "mean" | "cls"
    max_tokens: int | None
    prompts: dict[str, str]


class Bert(nn.Module):
    """Token ids in, (texts, tokens, width) out. `config` is the dictionary of config.json."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.words = _embedding(config["vocab_size"], width)
        self.positions = _embedding(config["max_position_embeddings"], width)
        self.types = _embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps)
        shape = (width, config["intermediate_size"], config["num_attention_heads"], eps)
        self.layers = nn.ModuleList(BertLayer(*shape) for _ in range(config["num_hidden_layers"]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor]:
        positions = self.positions.weight[: input_ids.shape[1]]
        tokens = self.norm(self.words(input_ids) + self.types(token_type_ids) + positions)
        lengths = attention_mask.sum(1).tolist() if _is_faster_by_text(tokens) else None
        # A text alone has no padding, and attention without a mask is faster.
        mask = None if len(input_ids) == 1 else attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            tokens = layer(tokens, mask, lengths)
        return (tokens,)


class BertLayer(nn.Module):
    def __init__(self, width: int, inner_width: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value, self.out = nn.Linear(width, 3 * width), LinearAdd(width, width)
        self.up, self.down = LinearGelu(width, inner_width), LinearAdd(inner_width, width)
        self.attention_norm, self.output_norm = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)

    def forward(self, tokens: Tensor, mask: Tensor | None, lengths: list[int] | None) -> Tensor:
        heads = self.query_key_value(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if lengths is None:
            seen = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
            seen = seen.transpose(1, 2).flatten(2)
        else:
            seen = _attend_by_text(heads, lengths)
        tokens = self.attention_norm(self.out(seen, tokens))
        output: Tensor = self.output_norm(self.down(self.up(tokens), tokens))
        return output


def _is_faster_by_text(tokens: Tensor) -> bool:
    """Whether attention is, (texts, tokens, width): a third faster on a CPU in bf16 for 200 tokens, slower for few."""
    return tokens.device.type == "cpu" and tokens.dtype == torch.bfloat16 and tokens.shape[1] >= BY_TEXT_TOKENS


def _attend_by_text(heads: Tensor, lengths: list[int]) -> Tensor:
    """Attention of each text to its own tokens: (3, texts, heads, tokens, head width) -> (texts, tokens, width)."""
    _, num_texts, num_heads, num_tokens, width = heads.shape
    output = heads.new_zeros(num_texts, num_tokens, num_heads, width)  # the rest must be finite, though nobody reads it
    scores, weights = (heads.new_empty(num_heads * max(lengths) ** 2) for _ in range(2))
    unused = heads.new_empty(1)
    for text, num in enumerate(lengths):
        query, key, value = heads[:, text, :, :num]
        shape = (num_heads, num, num)
        own_scores, own_weights = (one[: num_heads * num * num].view(shape) for one in (scores, weights))
        torch.baddbmm(unused, query, key.transpose(1, 2), beta=0, alpha=width**-0.5, out=own_scores)
        torch.softmax(own_scores, -1, out=own_weights)
        output[text, :num] = torch.bmm(own_weights, value).transpose(0, 1)
    return output.flatten(2)


def read_bert(folder: Path) -> BertSpec | None:
    """What the folder holds, or None where sentence-transformers has to load it."""
    try:
        modules = json.loads((folder / "modules.json").read_text())
        kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
        transformer = folder / modules[0]["path"]
        config = json.loads((transformer / "config.json").read_text())
        pooling = _pooling(json.loads((folder / modules[1]["path"] / "config.json").read_text()))
        length = json.loads((transformer / "sentence_bert_config.json").read_text())
        tokenizer = json.loads((transformer / "tokenizer_config.json").read_text())
        normalizer = json.loads((transformer / "tokenizer.json").read_text())["normalizer"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no such file, or of another shape
        return None
    is_plain = (
        kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
        and config.get("architectures") == ["BertModel"]
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
        and pooling is not None
        and not length.get("do_lower_case")
        and _agree(tokenizer, normalizer)
        and (transformer / "model.safetensors").exists()
    )
    if not is_plain or pooling is None:
        return None
    prompts = _optional_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    return BertSpec(config, transformer, pooling, length.get("max_seq_length"), prompts)


def load_bert(spec: BertSpec) -> Bert:
    """Raises KeyError, RuntimeError or SafetensorError where the weights are not those of the configuration."""
    stored = load_file(spec.transformer / "model.safetensors")
    stored = {name.removeprefix("bert."): tensor for name, tensor in stored.items()}
    weights = {
        "words.weight": stored["embeddings.word_embeddings.weight"],
        "positions.weight": stored["embeddings.position_embeddings.weight"],
        "types.weight": stored["embeddings.token_type_embeddings.weight"],
    }
    for kind in ("weight", "bias"):
        weights[f"norm.{kind}"] = stored[f"embeddings.LayerNorm.{kind}"]
        for i in range(spec.config["num_hidden_layers"]):
            ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
            parts = [stored[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            weights[f"{ours}.query_key_value.{kind}"] = torch.cat(parts)
            weights[f"{ours}.out.{kind}"] = stored[f"{theirs}.attention.output.dense.{kind}"]
            weights[f"{ours}.attention_norm.{kind}"] = stored[f"{theirs}.attention.output.LayerNorm.{kind}"]
            weights[f"{ours}.up.{kind}"] = stored[f"{theirs}.intermediate.dense.{kind}"]
            weights[f"{ours}.down.{kind}"] = stored[f"{theirs}.output.dense.{kind}"]
            weights[f"{ours}.output_norm.{kind}"] = stored[f"{theirs}.output.LayerNorm.{kind}"]
    with torch.device("meta"):  # no time is spent on random weights
        bert = Bert(spec.config)
    bert.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return bert.eval()


def _embedding(num: int, width: int) -> nn.Embedding:
    """Without random weights: drawing them, even on the meta device, imports torch._dynamo, which takes two seconds."""
    return nn.Embedding(num, width, _weight=torch.empty(num, width))


def _pooling(config: dict[str, Any]) -> str | None:
    """The one mode, in the old notation (a flag for each) or the new; None where it is none that we do."""
    old = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    flags = [name for name, is_on in config.items() if name.startswith("pooling_mode_") and is_on]
    mode = config.get("pooling_mode", old.get(flags[0]) if len(flags) == 1 else None)
    return mode if mode in old.values() and config.get("include_prompt", True) else None


def _agree(tokenizer_config: dict[str, Any], normalizer: dict[str, Any] | None) -> bool:
    """transformers corrects tokenizer.json by tokenizer_config.json; we serve models that need no correction."""
    names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
    names["tokenize_chinese_chars"] = "handle_chinese_chars"
    return (
        normalizer is not None
        and normalizer.get("type") == "BertNormalizer"
        and all(
            tokenizer_config[one] == normalizer.get(other) for one, other in names.items() if one in tokenizer_config
        )
    )


def _optional_json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text()) if path.exists() else {}
    return found if isinstance(found, dict) else {}

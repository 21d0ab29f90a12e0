"""What makes two embeddings comparable: the model's files, pooling, prefixes and length."""

import json
from dataclasses import asdict, dataclass, fields

from rag.errors import IndexMismatch
from rag.records import to_json


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


def _short(value: object) -> str:
    """Of a digest, enough to tell two apart."""
    return f"{value[:8]}…" if isinstance(value, str) and len(value) == 64 else repr(value)

"""A distributed, Ray-native RAG platform: your documents in, cited answers out.

import rag
rag.ingest(["docs/"], rag.load_settings(collection="docs"))
print(rag.QueryAgent(collection="docs")("How do I install it?").answer)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rag.config import Settings, load_settings
    from rag.errors import RagError
    from rag.generate.answer import QueryAgent
    from rag.index.build import IngestReport, ingest
    from rag.index.forget import forget
    from rag.records import Answer, Hit
    from rag.search.retrieve import Retriever, open_retriever

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Hit",
    "IngestReport",
    "QueryAgent",
    "RagError",
    "Retriever",
    "Settings",
    "forget",
    "ingest",
    "load_settings",
    "open_retriever",
]

_HOMES = {
    "Answer": "rag.records",
    "Hit": "rag.records",
    "IngestReport": "rag.index.build",
    "QueryAgent": "rag.generate.answer",
    "RagError": "rag.errors",
    "Retriever": "rag.search.retrieve",
    "Settings": "rag.config",
    "forget": "rag.index.forget",
    "ingest": "rag.index.build",
    "load_settings": "rag.config",
    "open_retriever": "rag.search.retrieve",
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used, so that `import rag` costs nothing."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rag' has no attribute {name!r}")

"""Whose a document is, and which labels guard it: by what the operator says, or where asked, by what its row says.

A document does not choose who may read it: `tenant` and `labels` in a row are metadata like any other, unless
`ingest.row_access` is set for a source whose author is trusted to say so.
"""

import json
from collections.abc import Iterable
from dataclasses import replace

from rag.config import IngestConfig
from rag.errors import ExtractionError
from rag.ingest.rows import ROW
from rag.records import Access, DocumentRef, to_json


def choose_access(config: IngestConfig, remembered: Access | None) -> Access:
    """What the documents of a source get: what is set, otherwise what they got in the run before."""
    before = remembered or Access()
    return Access(
        before.tenant if config.tenant is None else config.tenant,
        before.labels if config.labels is None else in_order(config.labels),
    )


def with_access(ref: DocumentRef, access: Access, config: IngestConfig) -> DocumentRef:
    own_access = config.row_access and ref.mime == ROW
    return replace(ref, tenant=access.tenant, labels=to_json(list(access.labels)), own_access=own_access)


def access_of(ref: DocumentRef, meta: str) -> Access:
    """Raises ExtractionError for a row whose own tenant or labels cannot be understood: it must not get in."""
    access = Access(ref.tenant, in_order(json.loads(ref.labels)))
    if not ref.own_access:
        return access
    row = json.loads(meta)
    tenant, labels = row.get("tenant", access.tenant), row.get("labels", list(access.labels))
    if not isinstance(tenant, str):
        raise ExtractionError(f"expected a text as tenant, found {type(tenant).__name__}; correct the row")
    if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
        raise ExtractionError(f"expected a list of texts as labels, found {labels!r:.100}; correct the row")
    return Access(tenant, in_order(labels))


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Equal sets, equal tuples."""
    return tuple(sorted(set(labels)))

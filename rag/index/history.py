"""What a collection has beside its rows: its sources, and what was live when. Out of the database for a dump, and back.

Both move by what decides later: which documents a run without a source or labels reads and opens to whom, where a
rollback goes. SQL; knows no files.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from rag.index.dump_format import ActivationPart, Manifest, OriginPart
from rag.index.generations import make_live
from rag.index.store import scalar

Conn = psycopg.Connection[Any]


def read_origins(conn: Conn, collection_id: int) -> tuple[OriginPart, ...]:
    rows = conn.execute(
        "select origin, tenant, labels, added_at from origins where collection_id = %s order by added_at, origin",
        [collection_id],
    )
    return tuple(OriginPart(origin=o, tenant=t, labels=tuple(labels), added_at=at) for o, t, labels, at in rows)


def read_activations(conn: Conn, collection_id: int, index_ids: Sequence[int]) -> tuple[ActivationPart, ...]:
    """The switches to these generations. One to another is passed over, as a rollback passes over what was dropped."""
    rows = conn.execute(
        "select activation_id, generation_id, previous_id, activated_at from activations where collection_id = %s"
        " order by activation_id",
        [collection_id],
    )
    kept: list[ActivationPart] = []
    places: dict[int | None, int | None] = {None: None}  # by switch: where a rollback that comes to it finds a target
    for activation_id, index_id, previous_id, activated_at in rows:
        places[activation_id] = places[previous_id]
        if index_id in index_ids:
            kept.append(ActivationPart(index_id=index_id, previous=places[previous_id], activated_at=activated_at))
            places[activation_id] = len(kept) - 1
    return tuple(kept)


def write_history(conn: Conn, collection_id: int, manifest: Manifest, ids: Mapping[int, int]) -> None:
    """Sources, switches and the live generation of a collection that nobody sees yet.

    `ids` says what each index of the manifest is called here.
    """
    conn.cursor().executemany(
        "insert into origins (collection_id, origin, tenant, labels, added_at) values (%s, %s, %s, %s, %s)",
        [(collection_id, o.origin, o.tenant, list(o.labels), o.added_at) for o in manifest.origins],
    )
    if manifest.live_index_id is None:
        return
    live_id = ids[manifest.live_index_id]
    if not manifest.activations:  # of an earlier version: it is live from now on
        make_live(conn, collection_id, None, live_id, None)
        return
    _write_activations(conn, collection_id, manifest.activations, ids)
    conn.execute("update collections set live_generation_id = %s where collection_id = %s", [live_id, collection_id])


def _write_activations(
    conn: Conn, collection_id: int, activations: Sequence[ActivationPart], ids: Mapping[int, int]
) -> None:
    written: list[int] = []
    for switch in activations:
        previous_id = None if switch.previous is None else written[switch.previous]
        activation_id = scalar(
            conn,
            "insert into activations (collection_id, generation_id, previous_id, activated_at)"
            " values (%s, %s, %s, %s) returning activation_id",
            [collection_id, ids[switch.index_id], previous_id, switch.activated_at],
        )
        written.append(activation_id)

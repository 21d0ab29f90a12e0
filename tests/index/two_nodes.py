"""Ingests three times on a Ray of three nodes: a head without CPUs and two workers.

In the second job the nodes count as machines, so the head sends them the files; in the third a worker dies.

A script, since a cluster and the session's own Ray cannot be in one process: two_nodes.py HOME DOCUMENTS NODES_FILE.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from pydantic import SecretStr
from ray.cluster_utils import Cluster

from rag.config import Settings, load_settings
from rag.index import job
from rag.index.build import ingest
from rag.index.database import open_database
from rag.index.generations import generations
from rag.index.store import Store


def located(nodes_file: Path) -> type[job.EmbedChunks]:
    """The embedding actor, which says on which node it is, and takes its time."""

    class LocatedEmbedChunks(job.EmbedChunks):
        def __call__(self, batch: Any) -> Any:
            with nodes_file.open("a") as stream:
                stream.write(f"{ray.get_runtime_context().get_node_id()}\n")
            time.sleep(0.5)
            return super().__call__(batch)

    return LocatedEmbedChunks


def located_reading(nodes_file: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What reads a file for other machines, and says on which node it is."""
    read = job._with_content

    def located_read(row: dict[str, Any]) -> dict[str, Any]:
        with nodes_file.open("a") as stream:
            stream.write(f"{ray.get_runtime_context().get_node_id()}\n")
        return read(row)

    return located_read


def kill_when_some_is_written(cluster: Cluster, node: Any, settings: Settings, killed_at: list[int]) -> None:
    store = Store(open_database(settings))
    while not killed_at:
        time.sleep(0.05)
        found = generations(store, settings.collection) if settings.collection in store.collections() else []
        num_documents = store.counts(found[0])["documents"] if found else 0
        if num_documents:
            cluster.remove_node(node, allow_graceful=False)
            killed_at.append(num_documents)
    store.close()


def main(home: Path, documents: Path, nodes_file: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=3, object_store_memory=100 * 2**20) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    job.EmbedChunks = located(nodes_file)  # type: ignore[misc]
    settings = load_settings(home=home, collection="two-nodes", embed={"precision": "fp32"})
    whole = ingest([str(documents)], settings)
    used = sorted(set(nodes_file.read_text().split()))
    job.num_hosts, reading_file = lambda: 2, nodes_file.with_name("reading")
    job._with_content = located_reading(reading_file)
    to_send = {"collection": "sent", "database_url": SecretStr(open_database(settings))}
    sent = ingest([str(documents)], settings.model_copy(update=to_send))
    job.num_hosts = lambda: 1
    settings, killed_at = settings.model_copy(update={"collection": "one-node-dies"}), list[int]()
    killer = threading.Thread(target=kill_when_some_is_written, args=(cluster, nodes[1], settings, killed_at))
    killer.start()
    crippled = ingest([str(documents)], settings)
    killer.join()
    report = {"whole": asdict(whole), "nodes": used, "crippled": asdict(crippled), "killed_at": killed_at[0]}
    report |= {"sent": asdict(sent), "read_by": sorted(set(reading_file.read_text().split()))}
    report |= {"head": ray.get_runtime_context().get_node_id()}
    print(json.dumps(report))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

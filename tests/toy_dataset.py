"""A BEIR folder of a few documents: one long, one empty, one whose id needs quoting."""

import json
from pathlib import Path

LONG = " ".join(f"Krill swarm number {n} was eaten by a blue whale near the coast of South Georgia." for n in range(60))
CORPUS = [
    {"_id": "whale", "title": "Blue whales", "text": LONG},
    {"_id": "penguin #1", "title": "Emperor penguins", "text": "They dive five hundred metres deep and catch fish."},
    {"_id": "seal", "title": "Weddell seals", "text": "They hunt under the ice and breathe at holes."},
    {"_id": "station", "title": "McMurdo", "text": "The largest research station, founded in 1956."},
    {"_id": "empty", "title": "", "text": ""},
    {"_id": 7, "title": "Quartz", "text": "A mineral of silicon and oxygen."},
]
QUERIES = {
    "dive": "how deep do emperor penguins dive",
    "found": "when was McMurdo research station founded",
    "krill": "what eats krill",
    "nothing": "   ",
}
QRELS = [("dive", "penguin #1", 2), ("dive", "seal", 0), ("found", "station", 1), ("krill", "whale", 1)] + [
    ("krill", "empty", 1),
    ("nothing", "7", 1),
]


def make_dataset(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CORPUS))
    rows = [{"_id": query_id, "text": text} for query_id, text in QUERIES.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", *(f"{q}\t{d}\t{grade}" for q, d, grade in QRELS)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder

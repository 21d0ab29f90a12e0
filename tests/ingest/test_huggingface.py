import datetime
import json
import subprocess
import sys

import pytest

from rag.config import load_settings
from rag.errors import SourceError
from rag.ingest.extract import extract
from rag.ingest.huggingface import canonical_dataset
from rag.ingest.sources import is_within, list_documents, read_document

ROWS = [{"id": "a", "title": "A", "text": "one", "n": 1}, {"id": "b", "title": "B", "text": "two", "n": 2}]


@pytest.fixture
def listed(tmp_path):
    settings = load_settings(home=tmp_path / "home")
    return lambda source: list(list_documents(source, settings))


def test_a_saved_dataset_lists_its_rows(tmp_path, listed):
    import datasets

    folder = tmp_path / "saved rows"
    datasets.Dataset.from_list(ROWS).save_to_disk(folder)
    refs = listed(f"hf:{folder}")
    origin = f"hf:{tmp_path}/saved%20rows"
    assert [ref.source for ref in refs] == [f"{origin}?id=a", f"{origin}?id=b"]
    document = read_document(refs[1])
    assert json.loads(document.meta) == {"id": "b", "n": 2}
    assert [(section.title, section.text) for section in extract(document)] == [("B", "two")]
    assert listed(f"hf:{folder}") == refs


def test_a_changed_dataset_lists_its_new_rows_under_the_same_names(tmp_path, listed):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "old")
    before = listed(f"hf:{tmp_path}/old")
    datasets.Dataset.from_list([ROWS[0] | {"text": "new"}]).save_to_disk(tmp_path / "new")
    (tmp_path / "old").rename(tmp_path / "older")
    (tmp_path / "new").rename(tmp_path / "old")
    (after,) = listed(f"hf:{tmp_path}/old")
    assert after.source == before[0].source
    assert (read_document(before[0]).content != read_document(after).content) and b"new" in read_document(after).content


def test_a_dataset_with_splits_lists_all_of_them_or_the_one_that_is_named(tmp_path, listed):
    import datasets

    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    origin = f"hf:{tmp_path}/saved"
    every = [ref.source for ref in listed(origin)]
    assert every == [f"{origin}:train?id=a", f"{origin}:train?id=b", f"{origin}:test?id=a"]
    assert [ref.source for ref in listed(f"{origin}:test")] == every[2:]
    assert all(is_within(source, origin) for source in every) and is_within(every[2], f"{origin}:test")
    with pytest.raises(SourceError, match="no split 'dev' in train, test; check name, split and network"):
        listed(f"{origin}:dev")


def test_a_folder_with_parquet_or_json_files_is_a_dataset(tmp_path, listed):
    import datasets

    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "parquet/train.parquet")
    (tmp_path / "json").mkdir()
    (tmp_path / "json/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for kind in ("parquet", "json"):
        origin = f"hf:{tmp_path}/{kind}"
        assert [ref.source for ref in listed(origin)] == [f"{origin}:train?id=a", f"{origin}:train?id=b"]
        assert len(listed(f"{origin}:train")) == 2


def test_dates_are_kept_as_text_and_bytes_are_left_out(tmp_path, listed):
    import datasets

    row = {"text": "t", "day": datetime.date(2024, 2, 29), "image": {"bytes": b"\x89PNG", "path": "a.png"}}
    datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "saved")
    (ref,) = listed(f"hf:{tmp_path}/saved")
    assert ref.source == f"hf:{tmp_path}/saved?line=1"
    assert json.loads(read_document(ref).meta) == {"day": "2024-02-29", "image": {"bytes": None, "path": "a.png"}}


@pytest.mark.parametrize(
    ("source", "canonical"),
    [
        ("hf:org/name", "hf:org/name"),
        ("hf:org/name/config:train", "hf:org/name/config:train"),
        ("hf:squad:validation", "hf:squad:validation"),
        ("hf:/data/../srv/a b/", "hf:/srv/a%20b"),
        ("hf:/srv/x:train", "hf:/srv/x:train"),
        ("hf:/srv/x:y/z", "hf:/srv/x%3Ay/z"),
    ],
)
def test_a_dataset_has_one_name(source, canonical):
    assert canonical_dataset(source) == canonical_dataset(canonical) == canonical


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("hf:", "hf:: expected hf:org/name[:split] or hf:/path[:split]; check its spelling"),
        ("hf:a/b/c/d", "check its spelling"),
        ("hf:/nowhere", "hf:/nowhere: expected a folder at /nowhere, found none; check the path"),
        ("hf:no-such-organisation/nothing", "hf:no-such-organisation/nothing: expected a dataset that can be loaded"),
    ],
)
def test_what_is_no_dataset_is_refused_in_one_line(listed, source, reason):
    with pytest.raises(SourceError) as caught:
        listed(source)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_never_taken_for_a_dataset_of_the_hub(tmp_path, listed, monkeypatch):
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="expected a dataset of the hub, found a folder of this name; write hf:./org"):
        listed("hf:org/name")


def test_the_library_that_is_missing_is_named(tmp_path):
    program = (
        "import sys; sys.modules['datasets'] = None\n"
        "from pathlib import Path; from rag.ingest.huggingface import list_dataset\n"
        "try: list_dataset('hf:org/name', Path(sys.argv[1]))\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=True)
    reason = "expected the library datasets, found none; pip install datasets"
    assert done.stdout.decode() == f"hf:org/name: {reason}\n"

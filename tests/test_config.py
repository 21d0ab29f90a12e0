"""Settings: what wins over what, and what a wrong one says."""

from pathlib import Path

import pytest

from rag.config import ChunkConfig, load_settings
from rag.errors import ConfigError
from rag.index.database import open_database


def test_a_flag_wins_over_the_environment_which_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rag.toml").write_text('collection = "from-file"\n[chunk]\nsize = 100\noverlap = 10\n')
    assert (load_settings().collection, load_settings().chunk.size) == ("from-file", 100)
    monkeypatch.setenv("RAG_CHUNK__SIZE", "200")
    assert (load_settings().chunk.size, load_settings().chunk.overlap) == (200, 10)
    assert load_settings(chunk={"size": 300}).chunk.size == 300


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[chunk]\nsize = 1\n", "chunk.size: Input should be greater than or equal to 50; found 1"),
        ("[chunk]\nsiez = 100\n", "chunk.siez: Extra inputs are not permitted"),
        ("[chunk\n", "rag.toml"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toml: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rag.toml").write_text(toml)
    with pytest.raises(ConfigError) as error:
        load_settings()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_secrets_are_read_from_their_usual_names_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2@h/db")
    settings = load_settings()
    assert settings.llm.api_key is not None
    assert settings.llm.api_key.get_secret_value() == "sk-hunter2"
    assert "hunter2" not in repr(settings) + str(settings.model_dump_json())


@pytest.mark.parametrize("name", ["LLM__APIKEY", "LLM__API_TOKEN", "LLM__Password", "LLM__SECRETS", "LLM__URL"])
def test_the_value_of_a_misspelt_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"RAG_{name}", "sk-hunter2")
    with pytest.raises(ConfigError, match=r"Extra inputs are not permitted$"):
        load_settings()


def test_the_value_of_any_other_wrong_setting_is_shown() -> None:
    with pytest.raises(ConfigError, match=r"^llm.max_tokens: .*; found 'many'$"):
        load_settings(llm={"max_tokens": "many"})


def test_database_url_replaces_the_embedded_server(database_url: str, tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "unused", database_url=database_url)
    assert open_database(settings) == database_url
    assert not (tmp_path / "unused").exists()


def test_the_default_chunk_method_is_not_stored():
    assert ChunkConfig().model_dump() == {"size": 700, "overlap": 50}
    assert ChunkConfig(method="code").model_dump() == {"method": "code", "size": 700, "overlap": 50}
    assert ChunkConfig(**ChunkConfig().model_dump()) == ChunkConfig()

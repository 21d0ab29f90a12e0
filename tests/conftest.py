"""One PostgreSQL and one Ray for the whole session; both real."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
for name in ("DATABASE_URL", "OPENAI_API_KEY", *(n for n in os.environ if n.startswith("RAG_"))):
    os.environ.pop(name, None)

from collections.abc import Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from rag.config import Settings, load_settings  # noqa: E402
from rag.index.store import Store  # noqa: E402


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Not under pytest's own folder: every pytest that root starts closes that to PostgreSQL's user."""
    from rag.index.server import EmbeddedServer

    with tempfile.TemporaryDirectory(prefix="rag-test-") as path:
        yield Path(path)
        EmbeddedServer(Path(path)).stop()


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """A RAG_HOME whose embedded server runs for the session."""
    with temporary_home() as path:
        yield path


@pytest.fixture
def fresh_home() -> Iterator[Path]:
    """A RAG_HOME of the test's own, empty."""
    with temporary_home() as path:
        yield path


@pytest.fixture(scope="session")
def database_url(home: Path) -> str:
    from rag.index.database import open_database

    return open_database(load_settings(home=home))


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


@pytest.fixture
def settings(home: Path, database_url: str, request: pytest.FixtureRequest) -> Settings:
    """Settings with a collection of the test's own."""
    name = "t-" + "".join(c if c.isalnum() else "-" for c in request.node.name)[-60:].strip("-")
    return load_settings(home=home, collection=name)


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """A small Ray: two CPUs, no dashboard."""
    from rag.config import RayConfig
    from rag.index.cluster import ray_session

    with ray_session(RayConfig(num_cpus=2)):
        yield


@pytest.fixture(scope="session")
def antarctica(home: Path, database_url: str, ray_here: None) -> Settings:
    """Settings of an ingested collection: three small pages, two of them about animals."""
    from rag.index.build import ingest

    settings = load_settings(home=home, collection="antarctica", llm={"name": "extractive"})
    folder = home / "antarctica"
    folder.mkdir()
    (folder / "penguins.md").write_text(
        "# Penguins\n\nPenguins live in the Antarctic.\n\n"
        "## Diet\n\nEmperor penguins eat krill, fish and squid. They dive 500 metres deep.\n"
    )
    (folder / "seals.html").write_text(
        "<title>Seals</title><h1 id=seals>Seals</h1><p>Weddell seals hunt fish under the ice.</p>"
    )
    (folder / "stations.txt").write_text("McMurdo is the largest research station; it was founded in 1956.")
    report = ingest([str(folder)], settings)
    assert report.documents["new"] == 3
    return settings


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and os.environ.get("CI"):
        terminalreporter.write_line(f"{len(skipped)} tests skipped, which CI does not allow", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [r for r in reporter.stats.get("skipped", []) if "needs the measuring data" not in str(r.longrepr)]
    if skipped and os.environ.get("CI") and session.exitstatus == 0:
        session.exitstatus = 1

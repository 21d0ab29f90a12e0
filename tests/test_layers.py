"""The import law: a module imports only from its own layer or the ones below."""

import ast
from pathlib import Path

import rag

ROOT = Path(rag.__file__).parent
LAYERS = [
    {"errors", "records", "catalog", "config", "progress"},
    {"ingest"},
    {"index"},
    {"search"},
    {"generate"},
    {"evaluate"},
    {"train", "serve"},
    {"demo", "cli", "cli_db", "cli_evaluate", "cli_index", "cli_train", "terminal"},
]
RAY_LIVES_IN = {"index/cluster.py", "index/job.py", "evaluate/experiment.py"}


def imports(path: Path) -> set[str]:
    """Dotted names of everything that `path` imports, at any depth of nesting."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def test_a_module_imports_only_from_its_layer_or_below() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        for name in imports(path)
        if name.startswith("rag.")
        and layer(name.split(".")[1]) > layer(path.relative_to(ROOT).parts[0].removesuffix(".py"))
    ]
    assert wrong == []


def test_ray_is_imported_only_by_the_thin_shells() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in modules()
        if any(name.split(".")[0] == "ray" for name in imports(path))
        and str(path.relative_to(ROOT)) not in RAY_LIVES_IN
        and path.relative_to(ROOT).parts[0] not in {"train", "serve"}
    ]
    assert wrong == []


# The edges; two that set what a library reads from it: Ray, and the OpenMP below llama.cpp; and one that hands it on.
TOUCH_ENVIRONMENT = {"cli.py", "config.py", "index/cluster.py", "generate/local.py", "ingest/git_command.py"}


def test_only_the_edges_touch_the_environment() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in modules()
        if path.relative_to(ROOT).as_posix() not in TOUCH_ENVIRONMENT
        and any(
            isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert wrong == []


def test_no_module_outgrows_its_subject() -> None:
    assert {str(p.relative_to(ROOT)): n for p in modules() if (n := len(p.read_text().splitlines())) > 340} == {}


def test_the_public_api_is_what_all_says() -> None:
    assert rag.__all__ == sorted(rag.__all__)
    assert all(getattr(rag, name) is not None for name in rag.__all__)


def test_nothing_loads_a_pickle() -> None:
    assert [str(p) for p in modules() if {"pickle", "joblib", "dill"} & imports(p)] == []

"""Who may import whom, what nobody may use, and what starts without the heavy libraries: read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for top in ("vae_anomaly", "flows") for p in (ROOT / top).rglob("*.py"))
# A part imports parts of the rows above its own, and itself; a new module needs a place here.
ROWS = (
    ("errors",),
    ("report",),  # values and their rendering: whoever has a Report needs nothing else
    ("registry", "artifact"),
    ("batch", "images"),
    ("schema",),
    ("config",),
    ("distributions",),
    ("nn", "views"),
    ("likelihoods",),
    ("vae",),
    ("tail",),
    ("models", "preprocessing", "objectives", "scores", "thresholds", "drift"),
    ("training",),
    ("detector",),
    ("explain", "fitting", "latent", "muting"),
    ("figures", "corruption"),
    ("estimator", "summary", "infer", "metrics"),
    ("store",),
    ("workspace",),
    ("answers",),
    ("pages",),
    ("worker", "watch", "grouping"),
    ("feedback",),
    ("replay", "recalibration"),
    ("execution",),
    ("sinks",),
    ("tracking", "pyfunc_model"),
    ("decisions",),
    ("registry_review",),
    ("scoring",),
    ("pipelines",),
    ("refit",),
    ("samples", "download", "console"),
    ("benchmark", "demo"),
    ("flows",),
    ("cli",),
    ("vae_anomaly",),  # the public names, imported when they are used
)
RANK = {part: rank for rank, row in enumerate(ROWS) for part in row}
MATHS = {part for row in ROWS[RANK["distributions"] : RANK["store"]] for part in row}
# Data at rest and what leaves the house know no mathematics.
APART = {"store", "sinks", "report", "config", "schema", "batch", "images", "registry", "errors"}
AT_HOME = {  # who may use a library
    "prefect": {"flows"},
    "mlflow": {"tracking", "registry_review", "pyfunc_model"},
    "typer": {"benchmark", "cli", "console"},
    "matplotlib": {"figures"},
    "PIL": {"images", "samples"},
    "sklearn": {"benchmark", "estimator", "metrics", "samples", "demo"},
    "umap": {"latent"},
}
MODULES_THAT_RUN_DATA = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS_THAT_RUN_DATA = {
    "eval", "exec", "__import__", "compile", "torch.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load", "pandas.read_pickle", "pd.read_pickle", "torch.jit.load", "torch.hub.load",
}  # fmt: skip


def part_of(path: Path) -> str:
    """The part of ``ROWS`` that a source file belongs to."""
    inside = path.relative_to(ROOT).with_suffix("").parts
    return inside[0] if inside[0] != "vae_anomaly" or inside[1] == "__init__" else inside[1]


def imports(tree: ast.AST, package: str = "vae_anomaly") -> Iterator[str]:
    """Full names of everything imported, at whatever depth: ``from a.b import c`` is ``a.b.c``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*kept, base]) if base else ".".join(kept)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_parts(tree: ast.AST, package: str = "vae_anomaly") -> set[str]:
    """Parts of ``ROWS`` that are imported."""
    found = set()
    for name in imports(tree, package):
        first, _, rest = name.partition(".")
        if first == "vae_anomaly":
            part = rest.split(".")[0]
            is_module = (ROOT / "vae_anomaly" / part).is_dir() or (ROOT / "vae_anomaly" / f"{part}.py").is_file()
            found.add(part if part and is_module else "vae_anomaly")
        elif first == "flows":
            found.add("flows")
    return found


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute chain, else the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        value = dotted(node.value)
        return f"{value}.{node.attr}" if value else ""
    return ""


def loads_safely(call: ast.Call) -> bool:
    """``yaml.load`` with the configuration's loader, which is a safe one: see the test of it."""
    loaders = [k.value for k in call.keywords if k.arg == "Loader"]
    return dotted(call.func) == "yaml.load" and [dotted(value) for value in loaders] == ["_Loader"]


def dangers(tree: ast.AST) -> list[str]:
    """Everything by which data could become code."""
    found = [name for name in imports(tree) if name.split(".")[0] in MODULES_THAT_RUN_DATA]
    found += [name for name in imports(tree) if name in CALLS_THAT_RUN_DATA]
    safe = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call) and loads_safely(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and dotted(node) in CALLS_THAT_RUN_DATA and id(node) not in safe:
            found.append(dotted(node))
        if isinstance(node, ast.Attribute) and node.attr in ("load_model", "to_pickle"):
            found.append(f".{node.attr}")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
    return found


def prints(tree: ast.AST) -> list[int]:
    """Lines that call the built-in ``print``."""
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call))
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def beyond(part: str, imported: set[str]) -> list[str]:
    """The imported parts that ``part`` must not know."""
    return sorted(other for other in imported - {part} if RANK[other] >= RANK[part])


each_file = pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


@each_file
def test_every_module_imports_only_rows_above_its_own(path):
    part = part_of(path)
    assert part in RANK, f"{part} has no row in ROWS: give it one"
    assert beyond(part, imported_parts(tree_of(path), package_of(path))) == []


@each_file
def test_data_and_its_way_out_know_no_mathematics(path):
    if part_of(path) in APART:
        assert not imported_parts(tree_of(path), package_of(path)) & MATHS
        libraries = {name.split(".")[0] for name in imports(tree_of(path))}
        assert not libraries & {"torch", "sklearn", "scipy", "safetensors"}


@each_file
def test_libraries_stay_where_they_belong(path):
    for name in imports(tree_of(path), package_of(path)):
        library = name.split(".")[0]
        assert part_of(path) in AT_HOME.get(library, {part_of(path)}), f"{library} must not be imported here"


@each_file
def test_no_data_becomes_code(path):
    assert dangers(tree_of(path)) == []


@each_file
def test_nothing_is_printed(path):
    assert prints(tree_of(path)) == []


@each_file
def test_nothing_subclasses_the_vae(path):
    classes = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef))
    assert [c.name for c in classes if any(dotted(b).split(".")[-1] == "VAE" for b in c.bases)] == []


@pytest.mark.parametrize(
    "snippet",
    [
        "import pickle",
        "def f():\n    import joblib as j",
        "from dill import loads",
        "import cloudpickle",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "load = torch.load",
        "import yaml\nyaml.load('x', Loader=yaml.Loader)",
        "eval('1')",
        "exec('x = 1')",
        "__import__('os')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import pandas as pd\npd.read_pickle('x')",
        "import mlflow\nmlflow.pyfunc.load_model('x')",
    ],
)
def test_the_check_for_code_in_data_catches(snippet):
    assert dangers(ast.parse(snippet))


HARMLESS = ("vae.eval()", "yaml.safe_load('x')", "re.compile('x')", "json.load(f)", "np.load('x')")


@pytest.mark.parametrize("snippet", HARMLESS)
def test_the_check_for_code_in_data_lets_pass(snippet):
    assert dangers(ast.parse(snippet)) == []


def test_the_loader_of_the_configuration_is_a_safe_one():
    import yaml

    from vae_anomaly.config import _Loader

    assert issubclass(_Loader, yaml.constructor.SafeConstructor)
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.load("!!python/object/apply:os.getcwd []", Loader=_Loader)


@pytest.mark.parametrize(
    ("snippet", "package", "parts"),
    [
        ("from vae_anomaly.store.files import Store", "vae_anomaly", {"store"}),
        ("def f():\n    from vae_anomaly import pipelines, Detector", "vae_anomaly", {"pipelines", "vae_anomaly"}),
        ("import vae_anomaly.cli as c", "vae_anomaly", {"cli"}),
        ("from . import files", "vae_anomaly.store", {"store"}),
        ("from ..vae import VAE", "vae_anomaly.store", {"vae"}),
        ("from .vae import VAE", "vae_anomaly", {"vae"}),
        ("if TYPE_CHECKING:\n    from flows.score import x", "vae_anomaly", {"flows"}),
    ],
)
def test_the_walk_sees_every_kind_of_import(snippet, package, parts):
    assert imported_parts(ast.parse(snippet), package) == parts


def test_the_check_of_rows_catches():
    tree = ast.parse("from vae_anomaly.vae import VAE\ndef late():\n    from vae_anomaly.detector import Detector")
    assert beyond("scores", imported_parts(tree)) == ["detector"]
    assert beyond("training", imported_parts(tree)) == ["detector"]
    assert beyond("thresholds", {"scores"}) == ["scores"]
    assert beyond("fitting", imported_parts(tree)) == []


def test_the_check_for_prints_catches():
    assert prints(ast.parse("def f():\n    print('x')\nconsole.print('y')")) == [2]


def test_there_is_something_to_check():
    assert len(SOURCES) > 30
    assert {part_of(p) for p in SOURCES} >= {"errors", "detector", "store"}


# ------------------------------------------------------------- what an import brings along

HEAVY = ("torch", "mlflow", "prefect", "sklearn", "pandas", "scipy", "matplotlib", "PIL")


def brought_along(*modules: str) -> set[str]:
    """Heavy libraries that a fresh process has after importing ``modules``."""
    code = f"import sys\nfor m in {modules!r}: __import__(m)\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return set(done.stdout.split())


def modules_of(part: str) -> list[str]:
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in SOURCES if part_of(p) == part]
    return [name.removesuffix(".__init__") for name in names]


def test_the_command_line_starts_light():
    names = ["vae_anomaly", *modules_of("cli"), *modules_of("errors"), *modules_of("registry"), *modules_of("config")]
    assert brought_along(*names, *modules_of("schema"), *modules_of("report")) == set()


def test_the_store_and_the_sinks_need_no_mathematics():
    found = brought_along(*modules_of("store"), *modules_of("sinks"))
    assert found & {"torch", "mlflow", "prefect", "sklearn"} == set()

"""The house keeps its walls: layers, lazy imports, file sizes, no unsafe loaders."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "stemjax"
FILES = sorted(PACKAGE.rglob("*.py"))

# The first matching prefix gives the layer. Rooms of layer 1 do not import each other.
LAYERS = [
    ("stemjax.typing", 0),
    ("stemjax.errors", 0),
    ("stemjax.foreign", 0),
    ("stemjax.names", 0),
    ("stemjax.stopping", 0),
    ("stemjax.diffusion", 1),
    ("stemjax.models", 1),
    ("stemjax.data", 1),
    ("stemjax.mesh", 1),
    ("stemjax.distributed", 1),
    ("stemjax.eval.metrics", 1),
    ("stemjax.tasks", 2),
    ("stemjax.eval.baselines", 2),
    ("stemjax.encoders", 2),
    ("stemjax.config", 3),
    ("stemjax.train", 4),
    ("stemjax.eval", 4),
    ("stemjax.export", 4),
    ("stemjax.configfile", 5),
    ("stemjax.terminal", 5),
    ("stemjax.pp", 5),
    ("stemjax.tl", 5),
    ("stemjax.pl", 5),
    ("stemjax.reading", 5),
    ("stemjax.demo", 5),
    ("stemjax.serving", 5),
    ("stemjax.integrations", 5),
    ("stemjax.cli", 5),
    ("stemjax", 0),
]
ONLY_IN = {
    "flax": ("stemjax.models", "stemjax.train.state"),
    "matplotlib": ("stemjax.eval.plots",),
    "tensorflow_datasets": ("stemjax.data.records", "stemjax.data.builder"),
    "orbax": ("stemjax.train.checkpoint", "stemjax.train.saving", "stemjax.train.step_folders"),
    "safetensors": ("stemjax.export",),
    "huggingface_hub": ("stemjax.foreign.hub_library",),
    "rich": ("stemjax.terminal",),
    "openslide": ("stemjax.data.wsi",),
    "pyarrow": ("stemjax.data.layouts", "stemjax.data.embedding_files"),
    "scoringrules": ("stemjax.eval.metrics",),
    "jinja2": ("stemjax.eval.report",),
    "fastapi": ("stemjax.serving",),
    "starlette": ("stemjax.serving",),
    "uvicorn": ("stemjax.serving",),
    "pydantic": ("stemjax.serving",),
    "prometheus_client": ("stemjax.serving",),
    "spatialdata": ("stemjax.integrations.spatialdata",),
    "geopandas": ("stemjax.integrations.spatialdata",),
    "shapely": ("stemjax.integrations.spatialdata",),
}
FORBIDDEN = ("torch", "tensorflow", "scanpy", "pickle", "cloudpickle", "dill", "joblib.load")
FORBIDDEN += ("squidpy", "lazyslide")  # they take what we write, and are never imported
# A file for PyTorch users, which nothing here imports (tests/export/test_torch_edm.py).
FOR_PYTORCH = "stemjax.export.reference.stem_edm"


def _name(path: pathlib.Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _matches(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _layer(name: str) -> tuple[int, str]:
    for prefix, layer in LAYERS:
        if _matches(name, prefix):
            return layer, prefix
    raise AssertionError(f"{name} is in no layer")


def _imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            # `from stemjax.data import records` is an import of stemjax.data.records.
            found |= names if _matches(module, "stemjax") else {module}
    return found


def _violations(name: str, imported: set[str]) -> list[str]:
    layer, room = _layer(name)
    if name == "stemjax":
        layer = 5  # the package's face: what it imports, it imports inside its functions
    wrong = []
    for target in imported:
        if not _matches(target, "stemjax") or target == "stemjax.__version__":
            continue
        below, other = _layer(target)
        if below > layer or (below == layer == 1 and other != room):
            wrong.append(f"{name} (layer {layer}) imports {target} (layer {below})")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_lower_layer_never_imports_a_higher(path):
    assert _violations(_name(path), _imports(path)) == []


def test_the_layer_rule_sees_a_planted_violation():
    assert _violations("stemjax.diffusion.noise", {"stemjax.train.loop"})
    assert _violations("stemjax.diffusion.noise", {"stemjax.models.stem"})
    assert _violations("stemjax.data.records", {"stemjax.eval.metrics"})
    assert not _violations("stemjax.train.loop", {"stemjax.data.records"})


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_heavy_libraries_have_one_place_and_unsafe_ones_none(path):
    name, imported = _name(path), _imports(path)
    for library, places in ONLY_IN.items():
        if any(_matches(module, library) for module in imported):
            assert any(_matches(name, place) for place in places), f"{name} imports {library}"
    forbidden = [library for library in FORBIDDEN if (name, library) != (FOR_PYTORCH, "torch")]
    for module in imported:
        assert not any(_matches(module, library) for library in forbidden), f"{name}: {module}"


# What runs code of a file, or of a text; what unpacks an archive to wherever its members say; a
# temporary name that another may take first; a download that nothing is compared with.
RUNNING = {"eval", "exec", "compile", "__import__", "breakpoint"}
UNSAFE_CALLS = (
    *("os.system", "os.popen", "subprocess.getoutput", "runpy.run_path", "runpy.run_module"),
    *("torch.load", "joblib.load", "yaml.load", "pd.read_pickle", "pandas.read_pickle"),
    *("tempfile.mktemp", "urllib.request.urlopen", "urlopen", "urlretrieve"),
    *("importlib.util.spec_from_file_location", "importlib.machinery.SourceFileLoader"),
    *("shutil.unpack_archive", "jax.export.deserialize", "pickle.loads", "marshal.loads"),
)
UNSAFE_METHODS = {"extractall", "extract", "exec_module", "read_pickle"}
UNSAFE_MODULES = ("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve")
UNSAFE_MODULES += ("jsonpickle", "yaml", "runpy", "tarfile", "code", "codeop", "torch.package")
XML_IN = ("stemjax.data.claims",)  # which refuses document types first
CONFIGURATION_IN = ("stemjax.configfile",)  # --config FILE is the user's own code
BY_NAME_IN = ("stemjax.integrations.spatialdata",)  # three names, written there


def _dotted(node: ast.expr) -> str:
    """``a.b.c`` of an expression; what is no name is a question mark."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _own_module(argument: ast.expr) -> bool:
    """Whether a module's name is written out, or begins with this package's."""
    if isinstance(argument, ast.JoinedStr):
        argument = argument.values[0]
        return isinstance(argument, ast.Constant) and str(argument.value).startswith("stemjax.")
    return isinstance(argument, ast.Constant)


def _unsafe_call(node: ast.Call, name: str) -> str | None:
    called, keywords = _dotted(node.func), {one.arg: one.value for one in node.keywords}
    found = {arg: isinstance(v, ast.Constant) and v.value for arg, v in keywords.items()}
    if called in RUNNING or called.startswith("builtins."):
        return f"{called}()"
    if called in UNSAFE_CALLS or called.rpartition(".")[2] in UNSAFE_METHODS:
        return f"{called}()"
    if called in ("np.load", "numpy.load") and found.get("allow_pickle", True) is not False:
        return "np.load() without allow_pickle=False"
    if "allow_pickle" in keywords and found["allow_pickle"] is not False:
        return "allow_pickle"
    if "allow_pickle" in keywords and not isinstance(keywords["allow_pickle"], ast.Constant):
        return "allow_pickle of a variable"
    if "trust_remote_code" in keywords or "shell" in keywords:
        return "trust_remote_code or shell"
    if called.endswith("import_module") and name not in BY_NAME_IN:
        return None if _own_module(node.args[0]) else "import_module() of a name from elsewhere"
    return None


def _unsafe(name: str, tree: ast.AST) -> list[str]:
    """What in a module could run what a file says."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (what := _unsafe_call(node, name)):
            found.append(f"line {node.lineno}: {what}")
        elif isinstance(node, ast.ExceptHandler) and node.type is not None:
            if "UnpicklingError" in ast.dump(node.type):
                found.append(f"line {node.lineno}: goes on after UnpicklingError")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for module in _modules(node):
                unsafe = any(_matches(module, one) for one in UNSAFE_MODULES)
                unsafe |= _matches(module, "xml") and name not in XML_IN
                configured = "config_flags" in module or _matches(module, "importlib.machinery")
                if unsafe or (configured and name not in CONFIGURATION_IN):
                    found.append(f"line {node.lineno}: imports {module}")
    return found


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_nothing_untrusted_is_executed(path):
    found = _unsafe(_name(path), ast.parse(path.read_text()))
    allowed = {FOR_PYTORCH: "imports torch"}.get(_name(path))
    assert [one for one in found if allowed is None or allowed not in one] == []


@pytest.mark.parametrize(
    "line",
    [
        *("eval(text)", "exec(text)", "compile(text, '', 'exec')", "__import__(name)"),
        *("builtins.exec(text)", "os.system(text)", "os.popen(text)", "torch.load(path)"),
        *("joblib.load(path)", "yaml.load(text)", "pd.read_pickle(path)", "np.load(path)"),
        *("np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=chosen)"),
        *("anything(allow_pickle=True)", "anything(allow_pickle=chosen)", "np.load(path, 'r')"),
        *("model(name, trust_remote_code=True)", "subprocess.run(text, shell=True)"),
        *("archive.extractall(folder)", "archive.extract(member)", "tempfile.mktemp()"),
        *("urllib.request.urlopen(address)", "importlib.import_module(told['class'])"),
        *("importlib.import_module(f'{told}.x')", "jax.export.deserialize(raw)"),
        *("import pickle", "from pickle import loads", "import marshal", "import shelve"),
        *("import dill", "import cloudpickle", "import yaml", "import tarfile", "import xml.sax"),
        *("from xml.etree import ElementTree", "import xml.etree.ElementTree as ET"),
        *("from ml_collections import config_flags", "from importlib import machinery"),
        "try:\n    pass\nexcept pickle.UnpicklingError:\n    pass",
        "try:\n    pass\nexcept (ValueError, UnpicklingError):\n    pass",
    ],
)
def test_the_rule_sees_a_planted_danger(line):
    assert _unsafe("stemjax.data.images", ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        *(
            "re.compile(text)",
            "lowered.compile()",
            "jax.eval_shape(f)",
            "np.load(a, allow_pickle=False)",
        ),
        *("importlib.import_module('igraph')", "importlib.import_module(f'stemjax.{name}')"),
    ],
)
def test_the_rule_lets_harmless_lines_pass(line):
    assert _unsafe("stemjax.data.images", ast.parse(line)) == []


@pytest.mark.parametrize(
    "path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: p.name
)
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400


def test_every_public_name_is_documented_and_annotated():
    missing = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        nodes = [*tree.body]
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                nodes += node.body
        for node in nodes:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            where = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            if ast.get_docstring(node) is None:
                missing.append(where + " has no docstring")
            if isinstance(node, ast.FunctionDef) and node.returns is None:
                missing.append(where + " has no return annotation")
    assert missing == []


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout


def test_importing_the_package_touches_no_device():
    code = (
        "import stemjax.tasks, stemjax.config, stemjax.train.loop\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    assert _run(code).strip() == "False"


def test_help_imports_no_heavy_library():
    code = (
        "import sys\nfrom stemjax import cli\ncli.make_parser().format_help()\n"
        "print([m for m in ('jax', 'numpy', 'anndata', 'matplotlib') if m in sys.modules])"
    )
    assert _run(code).strip() == "[]"


def test_ci_calls_exactly_the_readmes_test_line():
    line = "pip install uv && uv run pytest"
    assert line in (ROOT / "README.md").read_text().splitlines()
    assert line in (ROOT / ".ci" / "run").read_text().splitlines()


def test_no_lock_file_and_no_address_is_committed():
    tracked = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert "uv.lock" not in tracked
    addresses = ["pypi" + ".org", "python" + "hosted"]
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".sh"} and path.exists():
            text = path.read_text()
            assert not any(address in text for address in addresses), name

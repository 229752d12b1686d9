"""The layout of the code, enforced by reading it: who may import whom, sizes, names, docstrings."""

import ast
import pathlib

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "jaxseg"

# Package -> what it may import of jaxseg besides itself. `report`, `export`, `tools` and `main` stand at the top: they
# may import anything, and nothing below them imports them.
MAY_IMPORT = {
    "core": set(),
    "ops": {"core"},
    "losses": {"core", "ops"},
    "metrics": {"core", "ops"},
    "classical": {"core", "ops"},
    "crf": {"core", "ops"},
    "layers": {"core", "ops", "crf"},
    "backbones": {"core", "ops", "crf", "layers"},
    "models": {"core", "ops", "crf", "layers", "backbones"},
    "data": {"core"},
    "weights": {"core"},
    "inference": {"core", "ops", "crf"},
    "evaluate": {"core", "metrics", "inference", "data"},
    "train": {"core", "ops", "losses", "metrics", "data", "inference", "evaluate", "weights"},
}
TOP = {"report", "export", "tools", "main"}

# Packages of others that a part of jaxseg must not import, because it would no longer be what it is: pure functions, or
# input that a worker process starts without JAX's compiler.
FORBIDDEN = {
    "core": {"flax", "optax", "orbax"},
    "ops": {"flax", "optax", "orbax"},
    "losses": {"flax", "optax", "orbax"},
    "metrics": {"flax", "optax", "orbax"},
    "classical": {"flax", "optax", "orbax"},
    "crf": {"flax", "optax", "orbax"},
    "data": {"flax", "optax", "orbax"},
    "weights": {"flax", "optax", "orbax"},
    "models": {"optax", "orbax"},
    "backbones": {"optax", "orbax"},
    "layers": {"optax", "orbax"},
}
ALLOWED = {("jaxseg/crf/crf_rnn.py", "flax")}
NOWHERE = {"tensorflow", "torch", "torchvision"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
SETUP_METHODS = {"setup"}

SOURCES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted((REPOSITORY / "experiments").glob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))


def relative(path):
    return path.relative_to(REPOSITORY).as_posix()


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def package_of(path):
    """`ops` for jaxseg/ops/conv.py, `main` for jaxseg/main.py, `` for jaxseg/__init__.py."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem.removeprefix("__init__")


def imported_modules(tree):
    """Every imported module with its line; `from a import b` counts as a.b, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write the module's whole name"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def layering_faults(path, tree):
    """What this file imports although its package may not."""
    package = package_of(path)
    faults = []
    for module, line in imported_modules(tree):
        root, *rest = module.split(".")
        if root == "jaxseg" and rest and package not in TOP:
            if rest[0] != package and rest[0] not in MAY_IMPORT.get(package, set()) and rest[0] != "__version__":
                faults.append(f"{relative(path)}:{line} imports {module}; {package or 'jaxseg'} may not")
        forbidden = FORBIDDEN.get(package, set()) | NOWHERE
        if root in forbidden and (relative(path), root) not in ALLOWED:
            faults.append(f"{relative(path)}:{line} imports {module}; {root} has no place in {package}")
    return faults


def test_every_package_has_its_row():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= set(MAY_IMPORT) | TOP, "a package that MAY_IMPORT does not know"


def test_the_table_has_no_cycle():
    done = set()
    while len(done) < len(MAY_IMPORT):
        ready = {name for name, others in MAY_IMPORT.items() if name not in done and others <= done}
        assert ready, f"these import each other: {sorted(set(MAY_IMPORT) - done)}"
        done |= ready


def test_imports_keep_to_the_table():
    faults = [fault for path in SOURCES for fault in layering_faults(path, parse(path))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("ops/x.py", "import flax.linen as nn"),
        ("ops/x.py", "from jaxseg import losses"),
        ("data/x.py", "def f():\n    from jaxseg.models.unet import build"),
        ("crf/dense.py", "from flax import linen"),
        ("train/x.py", "import jaxseg.report.overlay"),
        ("models/x.py", "import torch"),
    ],
)
def test_a_wrong_import_is_found(file, code):
    assert len(layering_faults(PACKAGE / file, ast.parse(code))) == 1


def test_flax_may_be_used_in_crf_rnn():
    assert not layering_faults(PACKAGE / "crf/crf_rnn.py", ast.parse("from flax import linen"))


def test_experiments_import_only_ml_collections_and_each_other():
    for path in EXPERIMENTS:
        roots = {module.split(".")[0] for module, _ in imported_modules(parse(path))}
        assert roots <= {"ml_collections", "experiments"}, relative(path)


def test_no_private_jax_and_no_pmap():
    faults = []
    for path in SOURCES + TESTS:
        tree = parse(path)
        for module, line in imported_modules(tree):
            parts = module.split(".")
            if parts[0] in {"jax", "jaxlib"} and any(part.startswith("_") for part in parts):
                faults.append(f"{relative(path)}:{line} {module}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jax":
                if node.attr == "pmap" or (node.attr.startswith("_") and not node.attr.startswith("__")):
                    faults.append(f"{relative(path)}:{node.lineno} jax.{node.attr}")
    assert not faults, "\n".join(faults)


def lines_of_code(function):
    """Lines from `def` to the end, the docstring not counted: it is to say everything, however long that is."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def test_lines_of_code_leave_out_the_docstring():
    (function,) = ast.parse('def f(\n    a,\n):\n    """One.\n\n    Two.\n    """\n    b = a\n\n    return b\n').body
    assert lines_of_code(function) == 6


def test_files_and_functions_are_short():
    faults = []
    for path in SOURCES + EXPERIMENTS + TESTS:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            faults.append(f"{relative(path)}: {lines} lines, {MAX_FILE_LINES} at most")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = lines_of_code(node)
                if length > MAX_FUNCTION_LINES:
                    faults.append(f"{relative(path)}:{node.lineno} {node.name}: {length} lines")
    assert not faults, "\n".join(faults)


def test_no_file_has_a_vague_name():
    vague = [
        relative(p) for p in SOURCES + EXPERIMENTS + TESTS if p.stem in VAGUE_NAMES or p.parent.name in VAGUE_NAMES
    ]
    assert not vague


def undocumented(tree):
    """Public classes, their public methods and public functions without a docstring; what is nested is private."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield node.lineno, node.name
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    public = isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
                    if public and method.name not in SETUP_METHODS and not ast.get_docstring(method):
                        yield method.lineno, f"{node.name}.{method.name}"


def test_what_is_public_says_what_it_does():
    faults = []
    for path in SOURCES + EXPERIMENTS:
        tree = parse(path)
        if not ast.get_docstring(tree):
            faults.append(f"{relative(path)}: the module has no docstring")
        faults += [f"{relative(path)}:{line} {name}" for line, name in undocumented(tree)]
    assert not faults, "no docstring:\n" + "\n".join(faults)

"""requirements.txt names what the code imports, all of it and nothing else, pinned and with a reason."""

import ast
import pathlib
import re
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
LINE = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ #]+) +# (?P<reason>\S.+)$")

# Tests that run with requirements-references.txt only.
OPTIONAL = ("references", "benchmarks")

# Lines without an import of ours: the reason in the file says who needs them.
NOT_IMPORTED = {"array-record", "chex", "flatbuffers"}
IMPORTED_AS = {
    "absl": "absl-py",
    "array_record": "array-record",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "orbax": "orbax-checkpoint",
    "jinja2": "jinja2",
    "ml_collections": "ml-collections",
    "tensorflow_datasets": "tensorflow-datasets",
}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def lines_of(file):
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def pins(file):
    matches = [LINE.match(line) for line in lines_of(file)]
    return {canonical(match["name"]): match["version"] for match in matches}


def third_party_imports(folders, leave_out=()):
    """Distribution names of what the folders' modules import; `leave_out` names folders inside them."""
    roots = set()
    for folder in folders:
        for path in (REPOSITORY / folder).rglob("*.py"):
            if path.parent.name in leave_out:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    roots |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    roots.add(node.module.split(".")[0])
    ours = {"jaxseg", "experiments", "tests"}
    return {canonical(IMPORTED_AS.get(root, root)) for root in roots - ours - set(sys.stdlib_module_names)}


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-test.txt", "requirements-references.txt"])
def test_each_line_is_pinned_and_says_why(file):
    wrong = [line for line in lines_of(file) if not LINE.match(line)]
    assert not wrong, "\n".join(wrong)


def test_each_import_has_its_line_and_each_line_its_import():
    needed, pinned = third_party_imports(["jaxseg", "experiments"]), set(pins("requirements.txt"))
    assert needed - pinned == set(), "imported, but not in requirements.txt"
    assert pinned - needed - NOT_IMPORTED == set(), "in requirements.txt, but nothing imports it"


def test_tests_import_only_what_launch_test_installs():
    pinned = set(pins("requirements.txt")) | set(pins("requirements-test.txt"))
    optional = [f"tests/{name}" for name in OPTIONAL]
    assert third_party_imports(["tests"], leave_out=OPTIONAL) - pinned == set()
    assert third_party_imports(optional) - pinned - set(pins("requirements-references.txt")) == set()


def test_references_are_skipped_only_where_a_line_names_them():
    sources = [p.read_text(encoding="utf-8") for name in OPTIONAL for p in (REPOSITORY / "tests" / name).rglob("*.py")]
    skipped = {name.split(".")[0] for text in sources for name in re.findall(r'importorskip\(\s*"([\w.]+)"', text)}
    named = {canonical(IMPORTED_AS.get(name, name)) for name in skipped}
    known = set(pins("requirements-references.txt")) | set(pins("requirements.txt"))
    assert named and named <= known

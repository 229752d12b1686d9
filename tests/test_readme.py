"""What README.md names is there: links, files, flags, config keys, and the table of imports."""

import ast
import importlib
import pathlib
import re

import pytest

from experiments.deeplab_camvid import get_config
from jaxseg.core.names import known_names, resolve
from tests.test_layering import MAY_IMPORT, TOP

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(?P<package>\w+)` \|[^|]*\| (?P<may>[^|]*) \|$", re.MULTILINE)


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert len(links) >= 5
    assert [link for link in links if not (REPOSITORY / link.split("#")[0]).exists()] == []


def test_files_that_are_named_are_there():
    named = set(re.findall(r"(?:launch|experiments|tests|jaxseg|docs)/[\w/.-]+\.(?:sh|py|png|html)", README))
    assert {"launch/local.sh", "launch/test.sh", "experiments/deeplab_voc.py"} <= named
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_flags_that_are_named_are_mains():
    source = (REPOSITORY / "jaxseg" / "main.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    flags = {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr.startswith("DEFINE_") and call.args
    }
    assert {"config", "mode", "workdir"} <= flags
    named = {flag for flag in re.findall(r"--(\w+)(?=[=` ])", README)} - {"accelerator"}
    assert named - flags == set()
    assert flags - named == set(), "README does not name this flag"


@pytest.mark.parametrize("key", sorted(set(re.findall(r"config((?:\.[a-z_]+)+)\b(?!\.json)", README))))
def test_config_keys_that_are_named_are_there(key):
    if key in {".a.b", ".json"}:
        pytest.skip("an example of a key")
    node = get_config()
    for part in key.strip(".").split("."):
        assert part in node, f"config{key}"
        node = node[part]


def test_the_table_of_imports_is_the_one_that_is_enforced():
    rows = {match["package"]: match["may"] for match in ROW.finditer(README)}
    packages = {path.parent.name for path in (REPOSITORY / "jaxseg").glob("*/__init__.py")} - TOP
    assert set(rows) == packages
    for package, may in rows.items():
        allowed = set(re.findall(r"\w+", may.split(";")[0])) - {"nothing", "of", "jaxseg"}
        assert allowed == MAY_IMPORT[package] & packages, package


def test_models_and_backbones_that_are_named_build():
    for package, names in {"models": ("deeplab_v3", "deeplab_v3plus"), "backbones": ("resnet50", "resnet101")}.items():
        assert all(callable(resolve(package, name)) for name in names)


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_links_of_the_pages_lead_to_files(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
    assert links and [link for link in links if not (page.parent / link.split("#")[0]).exists()] == []


@pytest.mark.parametrize("package", ["losses", "metrics"])
def test_every_loss_and_metric_is_on_its_page(package):
    page = (REPOSITORY / "docs" / f"{package}.md").read_text(encoding="utf-8")
    modules = {name: importlib.import_module(f"jaxseg.{package}.{name}") for name in known_names(package)}
    assert [name for name, module in modules.items() if hasattr(module, "build") and f"`{name}`" not in page] == []


@pytest.mark.parametrize("package", ["models", "backbones"])
def test_every_model_and_backbone_is_on_its_page(package):
    page = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
    modules = {name: importlib.import_module(f"jaxseg.{package}.{name}") for name in known_names(package)}
    assert [name for name, module in modules.items() if hasattr(module, "build") and f"`{name}`" not in page] == []

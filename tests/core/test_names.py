import sys
import types

import pytest

from jaxseg.core.errors import JaxsegError, UnknownNameError
from jaxseg.core.names import call_with_options, close_matches, known_names, resolve


@pytest.fixture
def fruit(monkeypatch, tmp_path):
    """A package jaxseg.fruit with the modules apple (has build), melon (has none) and _seed."""
    import jaxseg

    folder = tmp_path / "fruit"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "apple.py").write_text("def build(*, size, ripe=True):\n    return (size, ripe)\n")
    (folder / "melon.py").write_text("INFO = 7\n")
    (folder / "_seed.py").write_text("")
    monkeypatch.setattr(jaxseg, "__path__", [*jaxseg.__path__, str(tmp_path)])
    yield folder
    for name in [n for n in sys.modules if n.startswith("jaxseg.fruit")]:
        del sys.modules[name]


def test_the_module_path_is_the_name(fruit):
    assert known_names("fruit") == ["apple", "melon"]
    assert resolve("fruit", "apple")(size=3) == (3, True)
    assert resolve("fruit", "melon", "INFO") == 7


def test_a_dotted_name_is_a_module_of_anyones(monkeypatch):
    theirs = types.ModuleType("theirs")
    theirs.net = types.ModuleType("theirs.net")
    theirs.net.build = lambda: "theirs"
    theirs.__path__ = []
    for module in (theirs, theirs.net):
        module.__spec__ = types.SimpleNamespace()
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert resolve("fruit", "theirs.net")() == "theirs"


def test_an_unknown_name_lists_the_near_ones(fruit):
    with pytest.raises(UnknownNameError, match=r"fruit name 'aple' .*jaxseg\.fruit\.aple.* Did you mean apple\?"):
        resolve("fruit", "aple")
    with pytest.raises(UnknownNameError, match="Known: apple, melon"):
        resolve("fruit", "zzzzz")
    with pytest.raises(UnknownNameError, match="nobody.net"):
        resolve("fruit", "nobody.net")


def test_a_module_without_the_attribute_lists_those_that_have_it(fruit):
    with pytest.raises(UnknownNameError, match="has no 'build'. Known: apple"):
        resolve("fruit", "melon")


def test_a_module_that_fails_to_import_is_not_called_unknown(fruit):
    (fruit / "rotten.py").write_text("import no_such_package_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
        resolve("fruit", "rotten")


def test_options_are_named_with_their_near_matches():
    def build(*, num_classes, output_stride=16):
        return num_classes, output_stride

    assert call_with_options(build, {"output_stride": 8}, where="config.model", num_classes=3) == (3, 8)
    with pytest.raises(UnknownNameError, match=r"config\.model\.output_strid is not .* Did you mean output_stride\?"):
        call_with_options(build, {"output_strid": 8}, where="config.model", num_classes=3)
    # What the code itself gives is not the config's to set.
    with pytest.raises(JaxsegError, match=r"config\.model\.num_classes is not an option"):
        call_with_options(build, {"num_classes": 4}, where="config.model", num_classes=3)


def test_a_function_that_takes_anything_gets_everything():
    assert call_with_options(lambda **options: options, {"b": 2}, where="config", a=1) == {"a": 1, "b": 2}


def test_close_matches_without_any_name():
    assert close_matches("x", []) == "There are none."

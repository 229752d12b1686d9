import dataclasses

import pytest

from jaxseg.core.types import DatasetInfo


def test_number_of_classes_does_not_count_void():
    info = DatasetInfo("two", ("a", "b"), ((0, 0, 0), (1, 2, 3)), 255)
    assert info.num_classes == 2
    assert info.splits == {} and info.void_color == (224, 224, 192)


def test_names_and_colours_must_pair():
    with pytest.raises(ValueError, match="2 class names but 1 colours"):
        DatasetInfo("two", ("a", "b"), ((0, 0, 0),), 255)


@pytest.mark.parametrize("void", [0, 1])
def test_void_is_no_class(void):
    with pytest.raises(ValueError, match=f"void {void} is the id of class '{'ab'[void]}'"):
        DatasetInfo("two", ("a", "b"), ((0, 0, 0), (1, 1, 1)), void)


def test_void_may_follow_the_classes():
    assert DatasetInfo("two", ("a", "b"), ((0, 0, 0), (1, 1, 1)), 2).void == 2


def test_facts_do_not_change():
    info = DatasetInfo("one", ("a",), ((0, 0, 0),), 255)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.void = 3

import gc

import pytest

from jaxseg.train.collector import collector_paused


def test_the_collector_rests_inside_and_is_afterwards_as_before():
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), collector_paused():
        raise KeyError
    assert gc.isenabled()


def test_as_a_decorator():
    assert collector_paused()(gc.isenabled)() is False
    assert gc.isenabled()

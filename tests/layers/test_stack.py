"""Maps in pieces, and in their place of one array: by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.layers.norm import NormOptions, StackNorm
from jaxseg.layers.stack import Room, Stack


def numbers(*values):
    return jnp.asarray([[values]], jnp.float32)  # one pixel


def test_maps_are_written_before_and_behind_those_that_are_there():
    room = Room.around(numbers(1, 2), before=3, after=2)
    np.testing.assert_array_equal(room.array[0, 0], [0, 0, 0, 1, 2, 0, 0])
    assert (room.first, room.end, room.channels, room.moments) == (3, 5, 2, (None,))
    later = room.followed_by(numbers(3)).preceded_by(numbers(-1, 0))
    np.testing.assert_array_equal(later.array[0, 0], [0, -1, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(later.whole()[0, 0], [-1, 0, 1, 2, 3])
    np.testing.assert_array_equal(later.pieces[0], later.whole())
    for channels in range(1, 6):
        np.testing.assert_array_equal(later.last(channels)[0, 0], np.arange(4 - channels, 4))
    np.testing.assert_array_equal(room.whole()[0, 0], [1, 2])  # what was there stays


def test_its_place_is_known_when_a_program_is_traced():
    @jax.jit
    def double(room):
        assert isinstance(room.end, int)
        return room.followed_by(2 * room.whole())

    np.testing.assert_array_equal(double(Room.around(numbers(1, 2), before=1, after=2)).array[0, 0], [0, 1, 2, 2, 4])


@pytest.mark.parametrize(
    "put", [lambda room: room.followed_by(numbers(1, 1)), lambda room: room.preceded_by(numbers(1, 1))]
)
def test_no_room(put):
    with pytest.raises(ValueError, match="no room for 2 channels"):
        put(Room.around(numbers(5), before=1, after=1))


def test_a_norm_of_it_is_that_of_a_stack():
    x, new = jax.random.normal(jax.random.key(0), (2, 3, 5, 4)), jax.random.normal(jax.random.key(1), (2, 3, 5, 2))
    room, stack = Room.around(x, before=1, after=3).followed_by(new), Stack.of(x).followed_by(new)
    layer = StackNorm(NormOptions(frozen=True))
    variables = layer.init(jax.random.key(2), stack, True)
    variables["batch_stats"]["mean"] += jnp.arange(6.0)
    of_room, same = layer.apply(variables, room, False)
    of_stack, _ = layer.apply(variables, stack, False)
    np.testing.assert_allclose(of_room, of_stack, rtol=1e-6)
    assert same is room and np.count_nonzero(of_room) > 20


def test_moments_of_the_whole_are_cut_to_the_pieces():
    stack = Stack.of(numbers(1, 2), numbers(3)).with_moments((jnp.asarray([1.0, 2, 3]), jnp.asarray([4.0, 5, 6])))
    (first, second), _ = stack.moments, stack.channels
    np.testing.assert_array_equal(first, [[1, 2], [4, 5]])
    np.testing.assert_array_equal(second, [[3], [6]])
    later = stack.preceded_by(numbers(0)).followed_by(numbers(4, 5))
    assert later.channels == 6 and later.moments == (None, first, second, None)
    np.testing.assert_array_equal(later.whole()[0, 0], np.arange(6))
    assert Stack.of(numbers(1)).with_moments(None).moments == (None,)


def test_the_last_channels_of_a_stack():
    stack = Stack.of(jnp.asarray([[1.0, 2, 3]]), jnp.asarray([[4.0, 5]]), jnp.asarray([[6.0]]))
    for channels in range(1, 7):
        np.testing.assert_array_equal(stack.last(channels), np.arange(7.0 - channels, 7)[None])

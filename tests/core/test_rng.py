import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.core.rng import COUNTER_HASH, base_key, step_keys


def data(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_keys_are_folds_of_step_and_position():
    key = base_key(3)
    keys = step_keys(key, 7, ("dropout", "noise"))
    folded = jax.random.fold_in(jax.random.key(3), 7)
    assert data(keys["dropout"]) == data(jax.random.fold_in(folded, 0))
    assert data(keys["noise"]) == data(jax.random.fold_in(folded, 1))


def test_keys_differ_by_seed_step_and_name_and_never_by_call():
    seen = [
        data(key)
        for seed in (0, 1)
        for step in (0, 1, 2)
        for key in step_keys(base_key(seed), step, ("dropout", "noise")).values()
    ]
    assert len({tuple(key) for key in seen}) == 12
    assert data(step_keys(base_key(0), 1, ("dropout",))["dropout"]) == seen[2]


def test_a_traced_step_gives_the_same_key():
    traced = jax.jit(lambda step: jax.random.key_data(step_keys(base_key(0), step, ("dropout",))["dropout"]))
    assert np.asarray(traced(np.int32(5))).tolist() == data(step_keys(base_key(0), 5, ("dropout",))["dropout"])


def hash_key(high=0x12345678, low=0x9ABCDEF0):
    return jax.random.wrap_key_data(jnp.asarray([high, low], jnp.uint32), impl=COUNTER_HASH)


def mixed(x):
    """Wellons' mix, in Python's integers."""
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def test_bits_and_folds_are_the_hash_of_the_counter():
    """By hand in Python's integers: the word's index in memory order; 16 and 8 bits are the word's lowest."""
    high, low = 0xFFFFFFF0, 77  # the counter wraps around
    words = [mixed(mixed((i + high) % 2**32) ^ low) for i in range(60)]
    assert np.ravel(jax.random.bits(hash_key(high, low), (3, 4, 5), jnp.uint32)).tolist() == words
    assert int(jax.random.bits(hash_key(high, low), (), jnp.uint32)) == words[0]
    assert np.ravel(jax.random.bits(hash_key(high, low), (60,), jnp.uint8)).tolist() == [w % 256 for w in words]
    first = mixed(9 + 0x9E3779B9)
    folded = [low ^ first, (high + mixed((first + 0x9E3779B9) % 2**32)) % 2**32]
    assert data(jax.random.fold_in(hash_key(high, low), 9)) == folded
    assert data(jax.random.split(hash_key(high, low), (2, 5)))[1][4] == folded
    with jax.enable_x64(True):
        pairs = jax.random.bits(hash_key(high, low), (30,), jnp.uint64)
        assert pairs.tolist() == [words[2 * i] << 32 | words[2 * i + 1] for i in range(30)]
        assert data(jax.random.key(2**32 + 5, impl=COUNTER_HASH)) != data(jax.random.key(5, impl=COUNTER_HASH))
    assert data(jax.random.key(5, impl=COUNTER_HASH)) != data(jax.random.key(6, impl=COUNTER_HASH))


def test_the_order_of_folds_counts_and_folding_again_does_not_undo():
    fold = lambda *numbers: tuple(data(functools.reduce(jax.random.fold_in, numbers, hash_key())))  # noqa: E731
    assert len({fold(), fold(1), fold(2), fold(1, 2), fold(2, 1), fold(1, 1), fold(1, 1, 1), fold(1, 2, 1)}) == 8


def agreement(a, b):
    """How far the share of equal bits is from one half, in its standard deviations."""
    difference = np.unpackbits(np.ascontiguousarray(a ^ b).view(np.uint8))
    return abs(difference.mean() - 0.5) * 2 * np.sqrt(difference.size)


def test_words_are_uniform_and_do_not_depend_on_each_other():
    """Bytes by chi-squared (255 degrees: 5 deviations are 368); neighbours, other keys and bits of a key by half."""
    words = np.asarray(jax.random.bits(hash_key(), (1024, 1024), jnp.uint32))
    for shift in (0, 8, 16, 24):
        counts = np.bincount((words >> shift & 255).ravel(), minlength=256)
        assert ((counts - 4096.0) ** 2 / 4096).sum() < 368
    for lag in (1, 2, 3, 16, 48, 4096):
        flat = words.ravel()
        assert agreement(flat[lag:], flat[:-lag]) < 5
    keys = [jax.random.fold_in(hash_key(), i) for i in range(4)]
    keys += [jax.random.fold_in(keys[1], i) for i in range(3)]
    keys += [hash_key(0x12345679), hash_key(0x92345678), hash_key(low=0x9ABCDEF1), hash_key(low=0x1ABCDEF0)]
    keys += [step_keys(base_key(0), step, ("dropout",))["dropout"] for step in range(3)]
    drawn = [words, *(np.asarray(jax.random.bits(key, (1024, 1024), jnp.uint32)) for key in keys)]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert agreement(one, other) < 5
            assert agreement(one.ravel()[1:], other.ravel()[:-1]) < 5


def test_each_bit_of_counter_and_key_changes_half_of_the_words_bits():
    """Flipping one bit changes each bit of the word with a probability within 0.06 of one half (4096 words)."""
    start = np.arange(4096, dtype=np.uint32) * np.uint32(2654435761)

    @jax.jit
    @jax.vmap
    def word(high, low, counter):
        return jax.random.bits(jax.random.fold_in(hash_key(high, low), counter), (), jnp.uint32)

    plain = word(start, start[::-1], start)
    for bit in range(32):
        flip = np.uint32(1 << bit)
        for changed in (
            word(start ^ flip, start[::-1], start),
            word(start, start[::-1] ^ flip, start),
            word(start, start[::-1], start ^ flip),
        ):
            bits = np.asarray(plain ^ changed)[:, None] >> np.arange(32) & 1
            np.testing.assert_allclose(bits.mean(axis=0), 0.5, atol=0.06)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4,)])
def test_eager_jit_vmap_and_two_devices_draw_the_same(shape):
    draw = lambda key: jax.random.bits(key, shape, jnp.uint32)  # noqa: E731
    eager = np.asarray(draw(hash_key()))
    np.testing.assert_array_equal(jax.jit(draw)(hash_key()), eager)
    keys = jax.random.split(hash_key(), 3)
    np.testing.assert_array_equal(jax.vmap(draw)(keys), [draw(key) for key in keys])
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()[:2]), ("data",)), PartitionSpec("data"))
    compiled = jax.jit(draw, out_shardings=sharding).lower(hash_key()).compile()
    np.testing.assert_array_equal(compiled(hash_key()), eager)
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))

"""Every random number is a function of the seed and of the step, never of how often something was called."""

import functools
import math
import operator

import jax
import jax.extend
import jax.numpy as jnp
from jax import lax

FOLD = 0x9E3779B9  # folding by 0 changes a key too, and its two words are not changed alike


def base_key(seed: int) -> jax.Array:
    """The key that a run's state carries."""
    return jax.random.key(seed)


def step_keys(key: jax.Array, step: jax.Array | int, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """One key a name for this step, for Flax's `rngs=`: `fold_in(fold_in(key, step), position of the name)`.

    Their words are those of the folds; what is drawn from them is COUNTER_HASH's.
    """
    folded = jax.random.fold_in(key, step)
    words = {name: jax.random.key_data(jax.random.fold_in(folded, i)) for i, name in enumerate(names)}
    return {name: jax.random.wrap_key_data(pair, impl=COUNTER_HASH) for name, pair in words.items()}


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which each bit of x changes each bit of the result with probability near 1/2.

    Wellons 2018, "Prospecting for hash functions": shifts 16, 15, 16, two multiplications, bias 0.17.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _words(key: jax.Array, counter: jax.Array) -> jax.Array:
    """`mixed(mixed(counter + key[0]) ^ key[1])`."""
    return _mixed(_mixed(counter + key[0]) ^ key[1])


def _fold_in(key: jax.Array, data: jax.Array | int) -> jax.Array:
    """`a = mixed(data + FOLD)`, `b = mixed(a + FOLD)`; `[key[1] ^ a, key[0] + b]`: other data, other words.

    `a` and `b` are constants where the data are, as a module's path is, so that a fold is two operations in each fused
    loop that draws. The words change places, or folding by 1 and then 2 would be folding by 2 and then 1.
    """
    first = _mixed(jnp.asarray(data).astype(jnp.uint32) + jnp.uint32(FOLD))
    return jnp.stack([key[1] ^ first, key[0] + _mixed(first + jnp.uint32(FOLD))], axis=-1)


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    counters = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    return jax.vmap(lambda i: _fold_in(key, i))(counters).reshape(*shape, 2)


def _seed(seed: jax.Array) -> jax.Array:
    high = seed >> 32 if seed.dtype.itemsize == 8 else jnp.zeros_like(seed)
    return _fold_in(jnp.stack([high.astype(jnp.uint32), jnp.zeros((), jnp.uint32)]), seed)


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    if bit_width == 64:
        pairs = _random_bits(key, 32, (*shape, 2)).astype(jnp.uint64)
        return pairs[..., 0] << 32 | pairs[..., 1]
    # Not one iota in another shape: a sharded axis stays where it is.
    strides = [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]
    axes = [lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride) for axis, stride in enumerate(strides)]
    counter = functools.reduce(operator.add, axes, jnp.zeros(shape, jnp.uint32))
    return _words(key, counter).astype(f"uint{bit_width}")


# Random bits by a hash of a counter, in two rounds with a word of the key before each (the construction of Even and
# Mansour 1997 on 32 bits). JAX's Threefry has 20 rounds, on CPUs five loops through memory: 3 x 224 x 224 x 48 words
# take 57 ms on two cores, here 1.6; a third of the instructions of FC-DenseNet's train step were Threefry's.
# For dropout, not for secrets; an array's words repeat after 2^32.
COUNTER_HASH = jax.extend.random.define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="jaxseg_counter_hash",
    tag="ch",
)

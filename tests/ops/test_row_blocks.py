"""Sums over an enlarged image by blocks of rows: equal to the whole image, in value and gradient, at any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.resize import resize
from jaxseg.ops.row_blocks import RowBlocks, map_rows, sum_over_rows
from jaxseg.ops.zoom import zoom

# source, size, rows of a block, alignment, grid
CASES = [
    ((5, 7), (33, 41), 8, "half_pixel", ()),  # blocks that do not divide
    ((5, 7), (33, 41), 11, "align_corners", ()),  # that do
    ((5, 7), (32, 41), 1, "half_pixel", ()),  # one row each
    ((5, 7), (33, 41), 50, "align_corners", ()),  # one block, more rows than there are
    ((9, 8), (9, 8), 4, "half_pixel", ()),  # nothing to enlarge
    ((20, 30), (9, 11), 2, "half_pixel", ()),  # shrinks
    ((1, 1), (9, 11), 4, "align_corners", ()),
    ((5, 7), (30, 52), 7, "align_corners", (33, 49)),  # zoom by 8: fewer rows than the grid, more columns
]


def whole(x, size, alignment, grid):
    return zoom(x, 8, size) if grid else resize(x, size, alignment=alignment)


def example(source, size, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(2, *source, 3)), jnp.float32)
    picture = jnp.asarray(rng.normal(size=(2, *size)), jnp.float32)
    return x, {"picture": picture, "where": jnp.asarray(rng.random((2, *size)) > 0.2)}


def sums(values, pixels):
    """Not linear in the values, so that a wrong block shows in the gradient; a sum for each image."""
    weighted = jnp.where(pixels["where"], pixels["picture"], 0.0)[..., None] * jnp.sin(values)
    return {"sine": jnp.sum(weighted, axis=(-3, -2)), "pixels": jnp.sum(jnp.where(pixels["where"], 1.0, 0.0), (-2, -1))}


@pytest.mark.parametrize(("source", "size", "rows", "alignment", "grid"), CASES)
def test_blocks_are_the_whole(source, size, rows, alignment, grid):
    x, pixels = example(source, size)
    plan = RowBlocks(source, size, rows, alignment, grid)

    def total(found):
        return jnp.sum(found["sine"] ** 2), found["pixels"]

    expected = jax.value_and_grad(lambda x: total(sums(whole(x, size, alignment, grid), pixels)), has_aux=True)
    found = jax.value_and_grad(lambda x: total(sum_over_rows(sums, plan, x, pixels)), has_aux=True)
    ((a, counted), slope), ((b, again), gradient) = jax.jit(expected)(x), jax.jit(found)(x)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_array_equal(counted, again)  # every pixel once
    np.testing.assert_allclose(slope, gradient, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(slope))))
    mapped = map_rows(lambda values, own: values[..., 1] * own["picture"], plan, x, pixels)
    expected = whole(x, size, alignment, grid)[..., 1] * pixels["picture"]
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-6)  # columns and rows in another order


def test_leading_dimensions_and_vmap():
    x, pixels = example((4, 3), (13, 9))
    plan = RowBlocks((4, 3), (13, 9), 5, "half_pixel")
    run = jax.jit(lambda x, p: sum_over_rows(sums, plan, x, p)["sine"])
    expected = run(x, pixels)
    np.testing.assert_allclose(run(x[0], jax.tree.map(lambda a: a[0], pixels)), expected[0], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(run)(x, pixels), expected, rtol=1e-6)
    deeper = run(x[:, None], jax.tree.map(lambda a: a[:, None], pixels))
    np.testing.assert_allclose(deeper[:, 0], expected, rtol=1e-6)


def test_bfloat16_is_summed_in_float32():
    x, pixels = example((4, 3), (13, 9))
    plan = RowBlocks((4, 3), (13, 9), 5, "half_pixel")
    low = x.astype(jnp.bfloat16)

    def loss(function):
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(function(x).astype(jnp.float32)))))

    def squares(values, own):
        return jnp.where(own["where"][..., None], values.astype(jnp.float32), 0.0)

    gradient = jax.jit(jax.grad(lambda x: jnp.sum(sum_over_rows(lambda v, p: squares(v, p) ** 2, plan, x, pixels))))(
        low
    )
    enlarged = lambda x: squares(resize(x, (13, 9), alignment="half_pixel"), pixels)  # noqa: E731
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), loss(enlarged)(low).astype(jnp.float32), rtol=0.02, atol=0.02
    )


def test_the_blocks_by_hand():
    plan = RowBlocks((2, 1), (5, 1), 2, "align_corners")
    window, tables = plan.windows()
    assert plan.starts.tolist() == [0, 2, 3] and window == 2
    assert tables["new"].tolist() == [[True, True], [True, True], [False, True]]
    rows = map_rows(
        lambda v, p: v[..., 0], plan, jnp.asarray([0.0, 4.0]).reshape(1, 2, 1, 1), {"where": jnp.ones((1, 5, 1), bool)}
    )
    np.testing.assert_array_equal(rows[0, :, 0], [0, 1, 2, 3, 4])


def test_memory_is_that_of_a_block():
    x = jax.ShapeDtypeStruct((2, 8, 8, 16), jnp.float32)
    where = jax.ShapeDtypeStruct((2, 128, 128), jnp.bool_)
    plan = RowBlocks((8, 8), (128, 128), 4, "half_pixel")

    def loss(function):
        return jax.jit(jax.grad(lambda x, w: jnp.sum(function(x, {"where": w}))))

    def squares(values, pixels):
        return jnp.sum(jnp.where(pixels["where"][..., None], jnp.sin(values), 0.0), axis=(-3, -2, -1))

    blocks = loss(lambda x, p: sum_over_rows(squares, plan, x, p)).lower(x, where).compile().memory_analysis()
    at_once = loss(lambda x, p: squares(resize(x, (128, 128), alignment="half_pixel"), p)).lower(x, where).compile()
    full = 2 * 128 * 128 * 16 * 4
    assert at_once.memory_analysis().temp_size_in_bytes >= full
    assert blocks.temp_size_in_bytes < full / 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"alignment": "corners"},
        {"rows": 0},
        {"size": (0, 3)},
        {"grid": (0, 1)},
    ],
)
def test_plans_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=r"alignment is one of|need pixels and rows"):
        RowBlocks(**({"source": (2, 2), "size": (4, 4), "rows": 2, "alignment": "half_pixel"} | wrong))


def test_arrays_that_do_not_fit():
    plan = RowBlocks((2, 2), (4, 4), 2, "half_pixel")
    for x, where in (((1, 3, 2, 1), (1, 4, 4)), ((1, 2, 2, 1), (1, 4, 5)), ((1, 2, 2, 1), (2, 4, 4))):
        for function in (sum_over_rows, map_rows):
            with pytest.raises(ValueError, match="do not fit"):
                function(lambda v, p: v[..., 0], plan, jnp.zeros(x), {"where": jnp.ones(where, bool)})

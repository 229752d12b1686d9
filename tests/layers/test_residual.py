"""A chain of residual units, each of whose outputs XLA's CPU is to write once and read from memory."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.backbones import resnet18, resnet50, xception41
from jaxseg.layers.aspp import ASPP
from jaxseg.layers.conv_norm import ConvNorm
from jaxseg.layers.residual import unit_output


class Unit(nn.Module):
    border: bool

    @nn.compact
    def __call__(self, x, train):
        y = x + ConvNorm(x.shape[-1], 1, activation=None, name="conv")(x, train)
        return nn.relu(unit_output(self, y) if self.border else y)


class Chain(nn.Module):
    border: bool

    @nn.compact
    def __call__(self, x, train=False):
        for i in range(8):
            x = Unit(self.border, name=f"unit{i}")(x, train)
        return x


def largest_sum(compiled):
    """The most additions that one fused computation holds."""
    computations = re.findall(r"fused_computation.*?\n}", compiled.as_text(), re.DOTALL)
    return max(len(re.findall(r" add\(", text)) for text in computations)


def test_values_and_gradients_are_those_of_plain_units():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 4))
    variables = Chain(True).init(jax.random.key(1), x)

    def total(border):
        def of(params, x):
            y, updated = Chain(border).apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), updated

        return jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True))(variables["params"], x)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), total(True), total(False))


def test_no_unit_sums_up_the_units_before_it_again():
    """Without the border one computation holds eight additions or more, with it at most two."""
    x = jnp.ones((2, 32, 32, 16))
    variables = Chain(True).init(jax.random.key(1), x)
    found = {}
    for border in (True, False):
        infer = jax.jit(lambda v, x, border=border: Chain(border).apply(v, x))
        found[border] = largest_sum(infer.lower(variables, x).compile())
    assert found[True] <= 2 < 8 <= found[False]


@pytest.mark.parametrize(("build", "units"), [(resnet18.build, 8), (resnet50.build, 16), (xception41.build, 12)])
def test_every_residual_unit_of_a_backbone_has_the_border(build, units):
    """One loop a unit in the program of the inference, before XLA; the last unit of Xception has no shortcut."""
    module, x = build(), jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    lowered = jax.jit(lambda v, x: module.apply(v, x, train=False)).lower(variables, x)
    assert lowered.as_text().count("stablehlo.while") == units


class Head(nn.Module):
    """ASPP behind a norm, whose gradients sum up what they read."""

    @nn.compact
    def __call__(self, x, train=True):
        return ASPP(4, (2, 3), True, image_pooling=False, dropout_rate=0.0, name="aspp")(
            ConvNorm(16, name="conv")(x, train), train
        )


def test_a_norm_before_aspp_does_not_sum_up_its_branches_again(monkeypatch):
    """18 taps and 1x1 reach the norm as one array: no reduction holds them, as it does without the border."""
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 8))
    variables = Head().init(jax.random.key(1), x)

    def gradients(params, x):
        def total(params, x):
            return jnp.sum(jnp.sin(Head().apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]))

        return jax.grad(total, argnums=(0, 1))(params, x)

    def compiled():
        return jax.jit(lambda *a: gradients(*a)).lower(variables["params"], x).compile()

    def most_products_of_a_reduction(program):
        bodies = re.findall(r"\n%?\S*computation\S* .*?\n}", program.as_text(), re.DOTALL)
        return max(body.count(" multiply(") for body in bodies if " reduce(" in body)

    with_border = compiled()
    monkeypatch.setattr("jaxseg.layers.aspp.input_of_branches", lambda module, x: x)
    without = compiled()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        with_border(variables["params"], x),
        without(variables["params"], x),
    )
    assert most_products_of_a_reduction(with_border) <= 4 < 18 <= most_products_of_a_reduction(without)

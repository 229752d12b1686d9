"""The train step: sums and counts, accumulation, devices, moving average, and what the compiled program holds."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import make_mesh, put_batch
from jaxseg.core.rng import base_key
from jaxseg.losses import cross_entropy
from jaxseg.losses.composition import Composition
from jaxseg.losses.inputs import masked_softmax
from jaxseg.losses.reduction import Loss
from jaxseg.train.bundle import small_on
from jaxseg.train.meter import StepResult
from jaxseg.train.objectives.supervised import build
from jaxseg.train.optim import make_optimizer
from jaxseg.train.state import create_state, place_state
from jaxseg.train.step import make_train_step, moving_average

CLASSES, VOID = 3, 255


class Tiny(nn.Module):
    """Two convolutions with what a real network has between them."""

    norm: bool = True
    dropout: float = 0.0
    head: bool = False

    @nn.compact
    def __call__(self, image, *, train):
        x = nn.Conv(8, (3, 3))(image)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        outputs = {"logits": nn.Conv(CLASSES, (1, 1))(x)}
        return outputs | ({"aux/early": nn.Conv(CLASSES, (1, 1))(x)} if self.head else {})


def batch_of(rows, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (rows, 6, 5)).astype(np.int32)
    label[rng.random(label.shape) < 0.3] = VOID
    return {"image": rng.integers(0, 256, (rows, 6, 5, 3)).astype(np.uint8), "label": label}


def pooled_square():
    """A loss whose value depends on the whole batch: the square of the mean probability of class 0."""

    def values(logits, labels, *, where):
        mask = where & (labels == labels)
        return jnp.square(
            jnp.sum(masked_softmax(logits, mask)[..., 0]) / jnp.maximum(jnp.sum(mask.astype(jnp.float32)), 1.0)
        )

    return Loss(values, lambda labels, *, where, num_classes: jnp.any(where).astype(jnp.float32), whole_batch=True)


ADDING = {"cross_entropy": (lambda step: jnp.ones(()), cross_entropy.build())}
POOLED = ADDING | {"pooled": (lambda step: jnp.asarray(5.0), pooled_square())}


EVERYTHING = ({"pattern": "."},)


def training(
    model, devices=1, *, terms=ADDING, aux=0.0, clip=0.0, fsdp=1, block_rows=0, rules=EVERYTHING, **step_options
):
    mesh = make_mesh({"data": -1, "fsdp": fsdp, "space": 1}, devices=jax.devices()[:devices])
    variables = jax.jit(lambda k: model.init({"params": k, "dropout": k}, jnp.zeros((1, 6, 5, 3)), train=False))(
        base_key(1)
    )
    options = {
        "name": "sgd",
        "momentum": 0.9,
        "schedule": {"name": "constant", "base": 0.1},
        "rules": rules,
    }
    small = small_on(mesh)
    optimizer = make_optimizer(options, variables["params"], total_steps=100, clip_norm=clip, small=small)
    objective = build(
        model=model,
        loss=Composition(terms),
        loss_aux_weight=aux,
        image_mean=(127.5,) * 3,
        image_std=(127.5,) * 3,
        num_classes=CLASSES,
        loss_block_rows=block_rows,
    )
    state = create_state(variables, optimizer, seed=0, ema=step_options.get("ema_decay", 0) > 0)
    step = make_train_step(objective, optimizer, state=state, mesh=mesh, **step_options)
    return mesh, place_state(state, mesh), step


def run(model, batch, devices=1, steps=3, **options):
    mesh, state, step = training(model, devices, **options)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, put_batch(mesh, batch))
        losses.append(float(metrics["loss"]))
    return jax.tree.map(np.asarray, state), losses


def test_the_loss_is_the_mean_over_valid_pixels_of_the_whole_batch():
    model, batch = Tiny(norm=False), batch_of(4)
    _, state, _ = training(model)
    logits = model.apply({"params": state.params}, batch["image"] / np.float32(127.5) - 1, train=False)["logits"]
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    valid = batch["label"] != VOID
    expected = -np.take_along_axis(log_p, np.where(valid, batch["label"], 0)[..., None], -1)[..., 0][valid].mean()
    _, losses = run(model, batch, steps=1)
    np.testing.assert_allclose(losses[0], expected, rtol=1e-6)


@pytest.mark.parametrize("terms", [ADDING, POOLED])
@pytest.mark.parametrize(("devices", "head"), [(1, False), (2, True)])
def test_accumulation_gives_the_update_of_the_whole_batch(terms, devices, head):
    batch, options = batch_of(4), {"terms": terms, "aux": 0.5 if head else 0.0}
    batch["label"][1] = VOID  # the parts hold different numbers of valid pixels
    whole, losses = run(Tiny(norm=False, head=head), batch, **options)
    parts, part_losses = run(Tiny(norm=False, head=head), batch, devices, accumulation_steps=2, **options)
    np.testing.assert_allclose(losses, part_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole.params, parts.params)


def test_a_pooled_loss_sees_every_part_and_the_terms_are_shown():
    batch = batch_of(4)
    mesh, state, step = training(Tiny(dropout=0.3), terms=POOLED, accumulation_steps=4)
    placed = jax.tree.map(np.asarray, state)
    after, metrics = step(state, put_batch(mesh, batch))
    shown = StepResult(1, np.arange(4), metrics).values()
    assert set(shown) == {"loss", "learning_rate", "gradient_norm", "loss/cross_entropy", "loss/pooled"}
    np.testing.assert_allclose(shown["loss"], shown["loss/cross_entropy"] + 5 * shown["loss/pooled"], rtol=1e-6)
    # Batch norm and dropout work per part, alike in both passes: four updates of the running mean, not eight.
    again, _, _ = training(Tiny(dropout=0.3), terms=ADDING, accumulation_steps=4)
    _, start, adding = training(Tiny(dropout=0.3), terms=ADDING, accumulation_steps=4)
    other, _ = adding(start, put_batch(again, batch))
    mean = lambda s: np.asarray(s.model_state["batch_stats"]["BatchNorm_0"]["mean"])  # noqa: E731
    np.testing.assert_allclose(mean(after), mean(other), rtol=1e-6)
    assert np.abs(mean(after) - mean(placed)).max() > 1e-4


@pytest.mark.parametrize(("devices", "fsdp"), [(2, 1), (4, 1), (4, 2)])
def test_devices_do_not_change_the_result(devices, fsdp):
    batch = batch_of(4)
    one, losses = run(Tiny(dropout=0.3), batch)
    many, many_losses = run(Tiny(dropout=0.3), batch, devices, fsdp=fsdp)
    np.testing.assert_allclose(losses, many_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one.params, many.params)
    mean = one.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, many.model_state["batch_stats"]["BatchNorm_0"]["mean"], rtol=1e-4, atol=1e-6)


def test_data_parallel_step_holds_no_all_gather():
    mesh, state, step = training(Tiny(), 4)
    text = step.lower(state, put_batch(mesh, batch_of(4))).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text


def test_dropout_differs_from_step_to_step_and_repeats_from_run_to_run():
    batch = batch_of(4)
    _, first = run(Tiny(dropout=0.5), batch)
    _, again = run(Tiny(dropout=0.5), batch)
    assert first == again
    mesh, state, step = training(Tiny(norm=False, dropout=0.5))
    later = state.replace(step=state.step + 1)
    copy = jax.tree.map(jnp.array, later)
    placed = put_batch(mesh, batch)
    assert float(step(state, placed)[1]["loss"]) != float(step(copy, placed)[1]["loss"])


def test_moving_average_by_hand():
    average = moving_average({"w": jnp.asarray(1.0)}, {"w": jnp.asarray(2.0)}, jnp.asarray(0), 0.9)
    np.testing.assert_allclose(average["w"], 1.9, rtol=1e-6)  # d = min(.9, 1/10)
    average = moving_average({"w": jnp.asarray(1.0)}, {"w": jnp.asarray(2.0)}, jnp.asarray(1000), 0.9)
    np.testing.assert_allclose(average["w"], 1.1, rtol=1e-6)


def test_the_state_carries_the_average_and_evaluates_with_it():
    state, _ = run(Tiny(), batch_of(4), ema_decay=0.9)
    assert state.step == 3
    kernel = state.variables()["params"]["Conv_0"]["kernel"]
    np.testing.assert_array_equal(kernel, state.ema["Conv_0"]["kernel"])
    assert np.abs(kernel - state.params["Conv_0"]["kernel"]).max() > 1e-6


def test_auxiliary_heads_add_their_weighted_loss():
    batch = batch_of(4)
    _, both = run(Tiny(head=True, norm=False), batch, steps=1, aux=0.5)
    _, main = run(Tiny(norm=False), batch, steps=1)
    assert both[0] > main[0] * 1.2
    for head, aux in ((True, 0.0), (False, 0.4)):
        with pytest.raises(JaxsegError, match="loss_aux_weight"):
            run(Tiny(head=head), batch, aux=aux)


def test_all_void_leaves_the_parameters_and_gives_zero_loss():
    batch = batch_of(2)
    batch["label"][:] = VOID
    _, state, _ = training(Tiny(norm=False))
    after, losses = run(Tiny(norm=False), batch)
    assert losses == [0.0, 0.0, 0.0]
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state.params), after.params)


def test_clipping_bounds_the_update():
    batch = batch_of(4)
    _, start, _ = training(Tiny(norm=False))
    after, _ = run(Tiny(norm=False), batch, steps=1, clip=1e-3)
    moved = jax.tree.map(lambda a, b: np.sum((np.asarray(a) - b) ** 2), start.params, after.params)
    np.testing.assert_allclose(np.sqrt(sum(jax.tree.leaves(moved))), 0.1 * 1e-3, rtol=1e-3)


FIRST_FROZEN = ({"pattern": "^Conv_0/", "freeze": True}, *EVERYTHING)


@pytest.mark.parametrize(("terms", "parts"), [(ADDING, 1), (ADDING, 2), (POOLED, 2)])
def test_frozen_parameters_stay_and_the_others_learn_as_before(terms, parts):
    model, batch = Tiny(norm=False), batch_of(4)
    options = {"terms": terms, "accumulation_steps": parts}
    _, before, _ = training(model)
    (whole, _), (frozen, _) = (
        run(model, batch, steps=1, rules=rules, **options) for rules in (EVERYTHING, FIRST_FROZEN)
    )
    jax.tree.map(
        np.testing.assert_array_equal, frozen.params["Conv_0"], jax.tree.map(np.asarray, before.params["Conv_0"])
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), frozen.params["Conv_1"], whole.params["Conv_1"]
    )
    assert not np.array_equal(whole.params["Conv_0"]["kernel"], frozen.params["Conv_0"]["kernel"])


def test_the_gradient_of_frozen_parameters_is_neither_counted_nor_computed():
    """Forward 2 convolutions; back 2 kernel gradients and the second one's image: of a frozen first only one."""
    norms, counts = [], []
    for rules in (EVERYTHING, FIRST_FROZEN):
        mesh, state, step = training(Tiny(norm=False), rules=rules)
        batch = put_batch(mesh, batch_of(4))
        counts.append(step.lower(state, batch).as_text().count("stablehlo.convolution"))
        start = jax.tree.map(np.asarray, state.params)
        after, metrics = step(state, batch)
        slopes = jax.tree.map(lambda a, b: (a - np.asarray(b)) / 0.1, start, after.params)
        norms.append((float(metrics["gradient_norm"]), float(optax.tree.norm(slopes))))
    assert counts == [5, 3]
    np.testing.assert_allclose(*zip(*norms, strict=True), rtol=1e-3)
    assert norms[1][0] < 0.99 * norms[0][0]


def test_a_loss_that_is_not_finite_names_step_and_examples():
    metrics = {"loss": jnp.asarray(jnp.nan), "row_finite": jnp.asarray([True, False, True])}
    result = StepResult(17, np.asarray([5, 9, 2]), metrics)
    with pytest.raises(Exception, match=r"step 17, on the examples file9\.") as caught:
        result.check(lambda i: f"file{i}")
    assert "clip_norm" in str(caught.value)
    StepResult(1, np.asarray([0]), {"loss": jnp.asarray(1.0)}).check(str)

"""Batch-norm statistics of the whole training set, computed after training as in SegNet (arXiv 1511.00561)."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.core.rng import base_key, step_keys


def recompute_batch_statistics(model: Any, variables: Any, batches: Iterable[jax.Array]) -> Any:
    """Replaces the running statistics by the mean and unbiased variance of every norm's input over all the images.

    The network runs as in training: each norm normalises by its own batch, and what reaches the next norm follows from
    that. Over the batches, with n_b values each, mean m_b and variance v_b:

    `mean = sum n_b m_b / N`, `var = sum n_b (v_b + (m_b - mean)^2) / (N - 1)`, merged pairwise in float64.

    Dropout acts as in training too, with a fixed key. Norms that are frozen keep their statistics.

    Args:
      model: Flax module whose norms are `jaxseg.layers.norm.BatchNorm`.
      variables: its `params` and `batch_stats`.
      batches: floating, normalised images `[b, h, w, 3]`; sizes may differ, at the cost of a compilation each.

    Returns:
      `variables` with other `batch_stats`; as they are where the model has none.

    Raises:
      JaxsegError: there is no image.

    Reference: SegNet's tutorial; its script averages the batches' unbiased variances and leaves out how their means
    differ. Here a set that is cut into other batches gives the same statistics for the first norm, exactly.
    """
    if not variables.get("batch_stats"):
        return variables

    @jax.jit
    def moments(variables: Any, image: jax.Array) -> Any:
        rngs = step_keys(base_key(0), 0, ("dropout",))
        _, found = model.apply(variables, image, train=True, mutable=["batch_moments"], rngs=rngs)
        return found.get("batch_moments", {})

    merged: dict[str, tuple[np.ndarray, np.ndarray, float]] = {}
    seen = False
    for image in batches:
        seen = True
        found = jax.device_get(moments(variables, image))
        for name, new in _by_norm(found).items():
            merged[name] = _merge(merged[name], new) if name in merged else new
    if not seen:
        raise JaxsegError("Batch-norm statistics cannot be recomputed: the training split gives no image.")
    flat, tree = jax.tree_util.tree_flatten_with_path(variables["batch_stats"])
    leaves = [_replaced(merged, "/".join(key.key for key in path), leaf) for path, leaf in flat]
    return {**variables, "batch_stats": jax.tree_util.tree_unflatten(tree, leaves)}


def _by_norm(found: Any) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Path of each norm -> mean, sum of squared differences from it, count, in float64."""
    values: dict[str, dict[str, np.ndarray]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        *parents, name = (key.key for key in path)
        values.setdefault("/".join(parents), {})[name] = np.asarray(leaf, np.float64)
    return {k: (v["mean"], v["var"] * v["count"], float(v["count"])) for k, v in values.items()}


def _merge(
    a: tuple[np.ndarray, np.ndarray, float], b: tuple[np.ndarray, np.ndarray, float]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Chan's update of mean, squared differences and count."""
    count = a[2] + b[2]
    difference = b[0] - a[0]
    return a[0] + difference * (b[2] / count), a[1] + b[1] + difference**2 * (a[2] * b[2] / count), count


def _replaced(merged: dict[str, tuple[np.ndarray, np.ndarray, float]], path: str, old: jax.Array) -> jax.Array:
    norm, _, name = path.rpartition("/")
    if norm not in merged:
        return old
    mean, squares, count = merged[norm]
    return jnp.asarray(mean if name == "mean" else squares / max(count - 1, 1), jnp.float32)

"""Bootstrapped and OHEM cross-entropy, and the selection under them, against sorting."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.losses import bootstrapped_cross_entropy as bootstrapped_module
from jaxseg.losses import ohem_cross_entropy as ohem_module
from jaxseg.losses.bootstrapped_cross_entropy import bootstrapped_cross_entropy
from jaxseg.losses.ohem_cross_entropy import ohem_cross_entropy
from jaxseg.ops.selection import top_k_share
from tests.losses.test_cross_entropy import cross_entropy_numpy, example


def select(values, k, where=None, axes=(0,)):
    values = jnp.asarray(values)
    where = jnp.ones(values.shape, bool) if where is None else jnp.asarray(where)
    k = jnp.asarray(k, jnp.int32).reshape([1 if a in axes else n for a, n in enumerate(values.shape)])
    return np.asarray(top_k_share(values, k, where=where, axes=axes))


def binary(losses):
    """Logits of two classes whose cross-entropy with label 0 is as given."""
    p = np.exp(-np.asarray(losses, np.float64))
    logits = np.stack([np.log(p), np.log1p(-p)], axis=-1).astype(np.float32)
    return logits - 3, np.zeros(p.shape, np.int32)


class TestSelection:
    def test_by_hand(self):
        np.testing.assert_array_equal(select([3.0, 1.0, 2.0, 2.0], 2), [1, 0, 0.5, 0.5])
        np.testing.assert_array_equal(select([3.0, 1.0, 2.0, 2.0], 3), [1, 0, 1, 1])
        np.testing.assert_array_equal(select([3.0, 1.0, 2.0, 2.0], 0), [0, 0, 0, 0])
        np.testing.assert_array_equal(select([3.0, 1.0, 2.0, 2.0], 9), [1, 1, 1, 1])
        np.testing.assert_array_equal(select([3.0, 1.0, 2.0, 2.0], 1, [False, True, True, False]), [0, 0, 1, 0])

    def test_zeros_of_both_signs_infinity_and_nan(self):
        np.testing.assert_array_equal(select([-0.0, 0.0, -1.0, 0.0], 1), np.asarray([1, 1, 0, 1], np.float32) / 3)
        np.testing.assert_array_equal(select([np.inf, np.nan, -np.inf, 7.0], 1), [0, 1, 0, 0])
        np.testing.assert_array_equal(select([np.inf, -np.nan, -np.inf, 7.0], 2), [1, 1, 0, 0])
        np.testing.assert_array_equal(select([np.inf, np.nan, -np.inf, 7.0], 4), [1, 1, 1, 1])

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_any_numbers_as_a_sort_has_them(self, dtype):
        rng = np.random.default_rng(0)
        with jax.enable_x64(dtype == np.float64):
            for scale in (1e-7, 1.0, 1e4):
                values = (rng.normal(size=200) * scale).astype(dtype)
                wide = values.astype(np.float64)
                for k in (1, 17, 200):
                    chosen = np.zeros(200)
                    chosen[np.argsort(-wide, kind="stable")[:k]] = 1
                    found = select(values, k).astype(np.float64)
                    # Whatever is equal may share; the sums are the same.
                    np.testing.assert_allclose(found.sum(), k, rtol=1e-3)
                    np.testing.assert_allclose((found * wide).sum(), (chosen * wide).sum(), rtol=5e-3, atol=1e-6)
                    if len(np.unique(values)) == 200:
                        np.testing.assert_array_equal(found, chosen)

    def test_over_some_axes(self):
        values = np.random.default_rng(1).random((3, 4, 5)).astype(np.float32)
        found = select(values, [1, 5, 20], axes=(1, 2))
        for image, k in zip(range(3), (1, 5, 20), strict=True):
            threshold = np.sort(values[image].ravel())[-k]
            np.testing.assert_array_equal(found[image], values[image] >= threshold)

    def test_order_does_not_matter(self):
        values = np.random.default_rng(2).integers(0, 4, 50).astype(np.float32)
        np.testing.assert_array_equal(select(values, 20)[::-1], select(values[::-1], 20))


class TestBootstrapped:
    def test_by_hand(self):
        logits, labels = binary([[3.0, 1.0, 2.0, 0.5]])
        np.testing.assert_allclose(bootstrapped_cross_entropy(logits, labels, pixels=2), [[3, 0, 2, 0]], rtol=1e-6)
        np.testing.assert_allclose(bootstrapped_cross_entropy(logits, labels), [[3, 0, 0, 0]], rtol=1e-6)
        loss = bootstrapped_module.build(fraction=0.6)  # ceil(2.4) = 3
        np.testing.assert_allclose(loss.mean(logits, labels), 2.0, rtol=1e-6)

    def test_equal_logits_give_every_pixel_the_same_gradient(self):
        labels = np.asarray([[0, 1], [2, 0]], np.int32)
        gradient = jax.grad(lambda x: jnp.sum(bootstrapped_cross_entropy(x, labels, fraction=0.5)))(
            jnp.zeros((2, 2, 3))
        )
        expected = 0.5 * (1 / 3 - np.eye(3)[labels])
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)

    @pytest.mark.parametrize("per_image", [True, False])
    @pytest.mark.parametrize(("fraction", "pixels"), [(0.1, None), (1 / 3, None), (1.0, None), (None, 4), (None, 99)])
    def test_numpy_twin(self, per_image, fraction, pixels):
        logits, labels, where = example(seed=4, shape=(3, 6, 7))
        where[1] = False
        where[2, 2:] = False
        loss = cross_entropy_numpy(logits, labels, where)
        expected, kept = np.zeros(loss.shape), []
        for part in range(3) if per_image else [slice(None)]:
            n = int(where[part].sum())
            k = min(pixels, n) if pixels else math.ceil(round(fraction * n, 9))
            kept.append(k)
            if k:
                expected[part] = np.where(loss[part] >= np.sort(loss[part][where[part]])[-k], loss[part], 0)
        options = {"fraction": fraction, "pixels": pixels, "per_image": per_image}
        found = bootstrapped_cross_entropy(logits, labels, where=where, **options)
        np.testing.assert_allclose(found, np.where(where, expected, 0), rtol=2e-5, atol=1e-6)
        built = bootstrapped_module.build(**options)
        counts = built.counts(labels, where=where, num_classes=4)
        np.testing.assert_array_equal(np.ravel(counts), kept)
        np.testing.assert_allclose(built.mean(logits, labels, where=where), expected.sum() / sum(kept), rtol=1e-5)
        assert built.whole_batch is not per_image

    def test_class_weights_do_not_change_what_is_hard(self):
        logits, labels = binary([[3.0, 1.0, 2.0, 0.5]])
        found = bootstrapped_cross_entropy(logits, labels, pixels=2, class_weights=(0.1, 5.0))
        np.testing.assert_allclose(found, [[0.3, 0, 0.2, 0]], rtol=1e-6)

    def test_counts_are_exact_where_float32_is_not(self):
        # 0.7 of 16,777,227 is 11,744,058.9; float32 arithmetic gives 11,744,058 or ...060.
        where = np.ones((1, 1, 16_777_227), bool)
        counts = jax.jit(lambda w: bootstrapped_module.build(fraction=0.7).counts(w, where=w, num_classes=2))(where)
        assert int(np.sum(counts)) == 11_744_059

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"fraction": 0.0}, "fraction = 0.0 is not in"),
            ({"fraction": 1.5}, "fraction = 1.5"),
            ({"fraction": "half"}, "fraction = 'half'"),
            ({"pixels": 0}, "pixels = 0"),
            ({"pixels": 2.5}, "pixels = 2.5"),
            ({"pixels": 3, "fraction": 0.5}, "exclude each other"),
            ({"class_weights": (-1.0, 1.0)}, "not negative"),
        ],
    )
    def test_bad_options(self, options, says):
        with pytest.raises(JaxsegError, match=says):
            bootstrapped_module.build(**options)
        if options.get("fraction") != "half" and options.get("pixels") != 2.5:
            with pytest.raises(ValueError, match="is not|exclude|not negative"):
                bootstrapped_cross_entropy(*binary([[3.0, 1.0]]), **options)


class TestOhem:
    def test_by_hand(self):
        logits, labels = binary(-np.log([[0.9, 0.6, 0.8, 0.3]]))
        kept = ohem_cross_entropy(logits, labels, min_kept=1)
        np.testing.assert_allclose(kept, [[0, 0.51082562 / 2, 0, 1.2039728 / 2]], rtol=1e-5)
        kept = ohem_cross_entropy(logits, labels, min_kept=3)
        np.testing.assert_allclose(kept, [[0, 0.51082562 / 3, 0.22314355 / 3, 1.2039728 / 3]], rtol=1e-5)
        np.testing.assert_allclose(
            np.sum(ohem_cross_entropy(logits, labels)), -np.log(0.9 * 0.6 * 0.8 * 0.3) / 4, rtol=1e-5
        )

    @pytest.mark.parametrize("per_image", [True, False])
    @pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 1), (0.7, 30), (0.05, 10), (1.0, 1), (0.7, 10**12)])
    def test_numpy_twin(self, per_image, threshold, min_kept):
        logits, labels, where = example(seed=5, shape=(3, 6, 7))
        where[1] = False
        loss = cross_entropy_numpy(logits, labels, where)
        means = []
        for part in range(3) if per_image else [slice(None)]:
            inside = loss[part][where[part]]
            if inside.size:
                p = np.exp(-inside)
                limit = np.sort(p)[min(min_kept, p.size) - 1]
                means.append(inside[(p < threshold) | (p <= limit)].mean())
        built = ohem_module.build(threshold=threshold, min_kept=min_kept, per_image=per_image)
        assert built.whole_batch is not per_image
        np.testing.assert_allclose(built.mean(logits, labels, where=where), np.mean(means), rtol=1e-5)

    def test_class_weights_do_not_change_the_divisor(self):
        logits, labels = binary(-np.log([[0.9, 0.6, 0.8, 0.3]]))
        one = ohem_cross_entropy(logits, labels, min_kept=1)
        weighted = ohem_cross_entropy(logits, labels, min_kept=1, class_weights=(0.25, 1.0))
        np.testing.assert_allclose(weighted, 0.25 * np.asarray(one), rtol=1e-6)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"threshold": 0.0}, "keeps nothing"),
            ({"threshold": 1.1}, "threshold = 1.1"),
            ({"min_kept": 0}, "min_kept = 0"),
            ({"min_kept": 0.5}, "min_kept = 0.5"),
            ({"class_weights": (float("inf"), 1.0)}, "finite"),
        ],
    )
    def test_bad_options(self, options, says):
        with pytest.raises(JaxsegError, match=says):
            ohem_module.build(**options)
        if "class_weights" not in options and options.get("min_kept") != 0.5:
            with pytest.raises(ValueError, match="threshold = .*min_kept"):
                ohem_cross_entropy(*binary([[3.0, 1.0]]), **options)

"""Distances, morphology and the losses about boundaries against libraries of others, where they are installed."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.losses.hausdorff_distance_transform import hausdorff_distance_transform
from jaxseg.losses.hausdorff_erosion import hausdorff_erosion
from jaxseg.ops.connected_components import connected_components
from jaxseg.ops.distance_transform import distance_transform
from jaxseg.ops.morphology import boundary, dilate
from tests.references.record import record_difference


def example(seed=0, shape=(2, 24, 31), classes=3):
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape[-2:])
    labels = np.stack([(rows // 8 + columns // 9 + i) % classes for i in range(shape[0])]).astype(np.int32)
    logits = rng.normal(0, 1, (*shape, classes)) + 3 * np.eye(classes)[np.roll(labels, 4, 1)]
    return logits.astype(np.float32), labels


def close(name, reference, found, expected, rtol=1e-5):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    record_difference(name, reference, np.abs(found - expected).max())
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-5)


def test_distance_transform_scipy():
    scipy = pytest.importorskip("scipy")
    ndimage = pytest.importorskip("scipy.ndimage")
    foreground = np.random.default_rng(1).random((3, 65, 120)) < 0.97
    expected = np.stack([ndimage.distance_transform_edt(f) for f in foreground])
    close(
        "distance_transform",
        f"scipy {scipy.__version__} distance_transform_edt",
        distance_transform(foreground),
        expected,
    )
    sampled = np.stack([ndimage.distance_transform_edt(f, sampling=(1.5, 0.4)) for f in foreground])
    name = f"scipy {scipy.__version__} distance_transform_edt, sampling"
    close("distance_transform", name, distance_transform(foreground, spacing=(1.5, 0.4)), sampled)


def test_distance_transform_monai():
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai")
    from monai.transforms.utils import distance_transform_edt

    foreground = np.random.default_rng(2).random((2, 40, 33)) < 0.9
    expected = distance_transform_edt(torch.as_tensor(foreground[:, None]).float())[:, 0].numpy()
    close(
        "distance_transform",
        f"monai {monai.__version__} distance_transform_edt",
        distance_transform(foreground),
        expected,
    )


def test_morphology_skimage():
    skimage = pytest.importorskip("skimage")
    from skimage.measure import label
    from skimage.morphology import diamond, dilation
    from skimage.segmentation import find_boundaries

    labels = example()[1]
    for connectivity in (1, 2):
        expected = np.stack([find_boundaries(x, connectivity=connectivity, mode="thick") for x in labels])
        found = boundary(labels, connectivity=4 * connectivity)
        close("boundary", f"skimage {skimage.__version__} find_boundaries", found, expected)
        components = np.stack([label(x, connectivity=connectivity, background=-1) for x in labels])
        found = connected_components(labels, connectivity=4 * connectivity)
        close("connected_components", f"skimage {skimage.__version__} label", found, components)
    mask = labels == 2
    expected = np.stack([dilation(m.astype(np.uint8), diamond(4)) for m in mask])
    close("dilate", f"skimage {skimage.__version__} dilation, diamond", dilate(mask, 4, structure="diamond"), expected)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_hausdorff_distance_transform_monai(alpha):
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai")
    logits, labels = example()
    reference = monai.losses.HausdorffDTLoss(
        alpha=alpha, include_background=True, softmax=True, to_onehot_y=True, reduction="mean"
    )
    x = torch.as_tensor(np.moveaxis(logits, -1, 1))
    expected = reference(x, torch.as_tensor(labels[:, None]).long()).item()
    found = jnp.mean(hausdorff_distance_transform(logits, labels, alpha=alpha))
    close("hausdorff_distance_transform", f"monai {monai.__version__} HausdorffDTLoss", found, expected)


@pytest.mark.parametrize("erosions", [1, 10])
def test_hausdorff_erosion_kornia(erosions):
    torch, kornia = pytest.importorskip("torch"), pytest.importorskip("kornia")
    logits, labels = example()
    p = torch.softmax(torch.as_tensor(np.moveaxis(logits, -1, 1)), 1)
    reference = kornia.losses.HausdorffERLoss(alpha=2.0, k=erosions, reduction="none")
    expected = reference(p, torch.as_tensor(labels[:, None]).long()).numpy()
    found = jnp.moveaxis(hausdorff_erosion(logits, labels, erosions=erosions), -1, 0)
    name = f"kornia {kornia.__version__} HausdorffERLoss, {erosions} erosions"
    close("hausdorff_erosion", name, found, expected.reshape(found.shape), rtol=2e-4)

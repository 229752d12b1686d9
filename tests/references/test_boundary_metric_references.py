"""Boundary and surface metrics against SciPy, scikit-image, MONAI, torchmetrics and DeepMind's surface-distance."""

import importlib.metadata
import warnings

import jax
import numpy as np
import pytest

from jaxseg.metrics import boundary_f1, boundary_iou, hausdorff, surface_distance, trimap
from tests.metrics import boundary_twins as twins
from tests.references.record import record_difference

IMAGES = 6


def masks(height=37, width=29):
    """Two label maps of 6 images with classes 0 and 1, neither of them empty."""
    labels, predictions, _ = twins.example((IMAGES, height, width), 3, seed=5, patches=16)
    return (labels == 1).astype(np.int32), (predictions == 1).astype(np.int32)


def per_image(metric, labels, predictions):
    """The scores of each image on its own."""
    counts = jax.tree.map(np.asarray, jax.jit(metric.counts)(labels, predictions, where=np.ones(labels.shape, bool)))
    return [metric.compute({k: v[i : i + 1] for k, v in counts.items()}) for i in range(len(labels))]


def compare(name, reference, got, expected, tolerance):
    package = reference.split(".")[0].split(" ")[0]
    difference = np.max(np.abs(np.asarray(got) - np.asarray(expected)))
    record_difference(name, f"{package} {importlib.metadata.version(package)} {reference.split(' ', 1)[1]}", difference)
    assert difference <= tolerance


def test_hausdorff_scipy_and_scikit_image():
    spatial = pytest.importorskip("scipy.spatial")
    skimage = pytest.importorskip("skimage.metrics")
    labels, predictions = masks()
    rows = per_image(hausdorff.build(num_classes=2, points="region"), labels, predictions)
    got = [row["hausdorff_per_class"][1] for row in rows]
    sets = [(np.argwhere(a), np.argwhere(b)) for a, b in zip(labels, predictions, strict=True)]
    directed = spatial.distance.directed_hausdorff
    compare(
        "hausdorff", "scipy directed_hausdorff", got, [max(directed(a, b)[0], directed(b, a)[0]) for a, b in sets], 0
    )
    expected = [skimage.hausdorff_distance(a == 1, b == 1) for a, b in zip(labels, predictions, strict=True)]
    compare("hausdorff", "scikit-image hausdorff_distance", got, expected, 0)


def one_hot(x, torch):
    return torch.stack([torch.from_numpy(x == c) for c in (0, 1)], dim=1).float()


@pytest.mark.parametrize("spacing", [1.0, (1.5, 0.7)])
def test_monai(spacing):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monai = pytest.importorskip("monai.metrics")
        labels, predictions = masks()
        options = {"num_classes": 2, "spacing": spacing, "outside": "background"}
        distances = per_image(hausdorff.build(**options), labels, predictions)
        surfaces = per_image(surface_distance.build(tolerances=(2,), **options), labels, predictions)
        pair = spacing if isinstance(spacing, tuple) else (spacing, spacing)
        y, p = one_hot(labels, torch), one_hot(predictions, torch)
        both = {"y_pred": p, "y": y, "include_background": True, "spacing": list(pair)}
        cases = [
            ("hausdorff", "compute_hausdorff_distance", {}, distances, "hausdorff"),
            ("hd95", "compute_hausdorff_distance percentile=95", {"percentile": 95}, distances, "hd95_max"),
            ("asd", "compute_average_surface_distance", {}, surfaces, "asd_prediction_to_truth"),
            ("assd", "compute_average_surface_distance symmetric", {"symmetric": True}, surfaces, "assd_pooled"),
            ("surface_dice", "compute_surface_dice", {"class_thresholds": [2.0, 2.0]}, surfaces, "surface_dice_2"),
        ]
        for name, function, more, rows, key in cases:
            expected = getattr(monai, function.split(" ")[0])(**both, **more).numpy()
            got = np.asarray([row[f"{key}_per_class"] for row in rows])
            compare(f"{name} spacing {spacing}", f"monai {function}", got, expected, 2e-5)


def test_hausdorff_torchmetrics():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functional = pytest.importorskip("torchmetrics.functional.segmentation")
        labels, predictions = masks(33, 33)  # its distance transform knows square images alone
        rows = per_image(hausdorff.build(num_classes=2, outside="background"), labels, predictions)
        expected = functional.hausdorff_distance(
            one_hot(predictions, torch).long(), one_hot(labels, torch).long(), 2, include_background=True
        )
        got = [row["hausdorff_per_class"] for row in rows]
        compare("hausdorff", "torchmetrics hausdorff_distance", got, expected.numpy(), 1e-5)


@pytest.mark.parametrize("spacing", [1.0, (1.5, 0.7)])
def test_surfels_surface_distance(spacing):
    metrics = pytest.importorskip("surface_distance.metrics")
    labels, predictions = masks()
    metric = surface_distance.build(
        num_classes=2, elements="surfels", spacing=spacing, outside="background", tolerances=(1.5,)
    )
    pair = spacing if isinstance(spacing, tuple) else (spacing, spacing)
    rows = per_image(metric, labels, predictions)
    got, expected = [], []
    for a, b, row in zip(labels == 1, predictions == 1, rows, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports from where SciPy no longer keeps its filters
            reference = metrics.compute_surface_distances(a, b, pair)
        dice = metrics.compute_surface_dice_at_tolerance(reference, 1.5)
        expected.append([*metrics.compute_average_surface_distance(reference), dice])
        names = ("asd_truth_to_prediction", "asd_prediction_to_truth", "surface_dice_1.5")
        got.append([row[f"{name}_per_class"][1] for name in names])
    compare(f"surfels spacing {spacing}", "surface-distance average distance, dice", got, expected, 2e-6)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_boundary_iou_by_erosions(width):
    """The authors' code: the mask less its erosions by 3 x 3, zeros around the image."""
    cv2 = pytest.importorskip("cv2")
    labels, predictions = masks()
    counts = boundary_iou.band_counts(labels, predictions, num_classes=2, width_px=width, outside="background")
    for a, b, got in zip(labels, predictions, np.asarray(counts), strict=True):
        padded = [np.pad(x, 1).astype(np.uint8) for x in (a, b)]
        inner = [cv2.erode(x, np.ones((3, 3), np.uint8), iterations=width) for x in padded]
        a, b = (x - y for x, y in zip(padded, inner, strict=True))
        compare(
            f"boundary_iou {width} px", "opencv-python-headless erode", got[1], [(a & b).sum(), a.sum(), b.sum()], 0
        )


def test_matches_and_bands_by_distance_transforms():
    ndimage = pytest.importorskip("scipy.ndimage")
    labels, predictions = masks()
    matched = boundary_f1.boundary_matches(labels, predictions, num_classes=2, tolerance_px=2, outside="background")
    bands = trimap.trimap_counts(labels, predictions, num_classes=2, widths=(1, 3, 6))
    cross = ndimage.generate_binary_structure(2, 1)
    for i, (a, b) in enumerate(zip(labels == 1, predictions == 1, strict=True)):
        edges = [x & ~ndimage.binary_erosion(x, cross) for x in (a, b)]
        near = [ndimage.distance_transform_edt(~x) <= 2 for x in edges]
        there, found = edges
        expected = [a.sum(), there.sum(), (there & near[1]).sum(), found.sum(), (found & near[0]).sum()]
        compare("boundary_f1 matches", "scipy distance_transform_edt", matched[i, 1], expected, 0)
        boundary = (a & ~ndimage.binary_erosion(a, cross, border_value=1)) | (
            ~a & ~ndimage.binary_erosion(~a, cross, border_value=1)
        )
        distance = ndimage.distance_transform_edt(~boundary)
        expected = [
            [(a & b & (distance < w)).sum(), (a & (distance < w)).sum(), (b & (distance < w)).sum()] for w in (1, 3, 6)
        ]
        compare("trimap", "scipy distance_transform_edt", bands[i, :, 1], expected, 0)

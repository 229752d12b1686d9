"""Trimap scores against values by hand, the plain twin, and the conventions."""

import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError
from jaxseg.metrics.confusion import confusion_numpy
from jaxseg.metrics.trimap import build, trimap_counts
from tests.metrics import boundary_twins as twins

LABELS = np.asarray([[0, 0, 0, 1, 1, 1]])


def test_by_hand():
    got = trimap_counts(LABELS, np.zeros_like(LABELS), num_classes=2, widths=(1, 2))
    np.testing.assert_array_equal(got, [[[1, 1, 2], [0, 1, 0]], [[2, 2, 4], [0, 2, 0]]])


def test_scores_by_hand():
    got = build(num_classes=3, widths=(1, 4)).compute(
        {"bands": np.asarray([[[2, 4, 3], [1, 1, 2], [0, 0, 0]], [[0, 0, 0]] * 3])}
    )["trimap"]
    assert got["width"] == [1, 4] and got["pixels"] == [5, 0]
    np.testing.assert_allclose(got["pixel_accuracy"], [3 / 5, np.nan])
    np.testing.assert_allclose(got["mean_accuracy"], [(1 / 2 + 1) / 2, np.nan])
    np.testing.assert_allclose(got["miou_present"], [(2 / 5 + 1 / 2) / 2, np.nan])


@pytest.mark.parametrize("around", ["boundary", "void"])
@pytest.mark.parametrize(("band", "widths"), [("euclidean", (1, 2, 3, 6)), ("square", (1, 3, 7))])
def test_twin(around, band, widths):
    labels, predictions, where = twins.example()
    options = {"widths": widths, "band": band, "around": around}
    got = trimap_counts(labels, predictions, num_classes=4, where=where, **options)
    for i in range(len(labels)):
        maps = twins.masked(labels[i], predictions[i], where[i], 4)
        np.testing.assert_array_equal(got[i], twins.trimap(*maps, 4, widths, band, around))


def test_a_band_as_wide_as_the_image_is_the_whole_image():
    labels, predictions, where = twins.example()
    got = np.asarray(trimap_counts(labels, predictions, num_classes=4, where=where, widths=(60,)))[:, 0].sum(axis=0)
    matrix = confusion_numpy(labels, predictions, num_classes=4, where=where)
    np.testing.assert_array_equal(got.T, [np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)])


def test_padding_is_no_void_to_be_around():
    labels = np.pad(np.zeros((4, 4), np.int32), ((0, 2), (0, 3)), constant_values=255)[None]
    labels[0, 0, 0] = 255
    where = labels != 255
    options = {"num_classes": 1, "widths": (2,), "where": where, "around": "void"}
    got = trimap_counts(labels, labels * 0, size=np.asarray([[4, 4]], np.int32), **options)
    assert got[0, 0, 0, 1] == 3  # beside the void pixel and below it, and diagonally


@pytest.mark.parametrize(
    "options", [{"widths": ()}, {"widths": (0, 1)}, {"widths": (3, 2)}, {"widths": (2,), "band": "square"}]
)
def test_bad_widths(options):
    with pytest.raises(JaxsegError, match="trimap.widths"):
        build(num_classes=2, **options)
    with pytest.raises(JaxsegError, match="trimap.band"):
        build(num_classes=2, band="round")
    with pytest.raises(JaxsegError, match="trimap.around"):
        build(num_classes=2, around="edge")

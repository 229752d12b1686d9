"""What every boundary metric keeps: any split, any devices, padding, void, vmap, one pixel: the same bits."""

import importlib

import jax
import numpy as np
import pytest

from jaxseg.core.mesh import batch_sharding, make_mesh
from tests.metrics import boundary_twins as twins

CLASSES = 5
METRICS = {
    "boundary_f1": {"tolerance_fraction": 0.1},
    "boundary_iou": {"width_fraction": 0.1},
    "trimap": {"widths": (1, 2, 5)},
    "hausdorff": {"one_empty": "diagonal"},
    "surface_distance": {"one_empty": "diagonal", "elements": "surfels"},
}
SHAPE = (4, 17, 14)
SIZE = np.asarray([SHAPE[1:]] * 4, np.int32)


@pytest.fixture(scope="module", params=sorted(METRICS))
def metric(request):
    """The metric and its counts under jit."""
    build = importlib.import_module(f"jaxseg.metrics.{request.param}").build
    made = build(num_classes=CLASSES, **METRICS[request.param])
    return made, jax.jit(made.counts)


def scores(metric, *batches):
    made, counts = metric
    state = made.state()
    for labels, predictions, where, size in batches:
        state.update(counts(labels, predictions, where=where, size=size))
    return state.compute()


def same(got, expected):
    """Equal bits, NaN included."""
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree_util.tree_leaves_with_path(expected), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


def pieces(rows):
    labels, predictions, where = twins.example(SHAPE, CLASSES)
    starts = np.cumsum([0, *rows])
    return [(labels[a:b], predictions[a:b], where[a:b], SIZE[a:b]) for a, b in zip(starts, starts[1:], strict=False)]


def test_any_split_order_and_merge(metric):
    whole = scores(metric, *pieces([4]))
    assert any(0 < v < 20 for v in jax.tree.leaves(whole))
    same(scores(metric, *pieces([1, 1, 1, 1])[::-1]), whole)
    made, counts = metric
    states = []
    for labels, predictions, where, size in pieces([1, 1, 1, 1]):
        states.append(made.state())
        states[-1].update(counts(labels, predictions, where=where, size=size))
    states[2].merge(states[0])
    states[2].merge(states[3])
    states[1].merge(states[2])
    same(states[1].compute(), whole)


def test_padding_with_void_and_with_rows_changes_nothing(metric):
    ((labels, predictions, where, size),) = pieces([4])
    whole = scores(metric, (labels, predictions, where, size))
    wide = ((0, 2), (0, 6), (0, 5))
    padded = [np.pad(x, wide, constant_values=3) for x in (labels, predictions)]
    sizes = np.pad(size, ((0, 2), (0, 0)), constant_values=9)
    same(scores(metric, (*padded, np.pad(where, wide), sizes)), whole)


def test_what_stands_at_void_pixels_has_no_influence(metric):
    ((labels, predictions, where, size),) = pieces([4])
    spoiled = [np.where(where, x, fill).astype(np.int32) for x, fill in ((labels, -7), (predictions, 2))]
    same(scores(metric, (*spoiled, where, size)), scores(metric, (labels, predictions, where, size)))


@pytest.mark.parametrize("sizes", [{"data": 4}, {"data": 2, "fsdp": 2}])
def test_four_devices(metric, sizes):
    ((labels, predictions, where, size),) = pieces([4])
    mesh = make_mesh(sizes)
    batch = [jax.device_put(x, batch_sharding(mesh, x.ndim)) for x in (labels, predictions, where, size)]
    same(scores(metric, batch), scores(metric, (labels, predictions, where, size)))


def test_vmap(metric):
    ((labels, predictions, where, size),) = pieces([4])
    mapped = jax.jit(jax.vmap(lambda y, p, w, s: metric[0].counts(y, p, where=w, size=s)))
    got = mapped(labels, predictions, where, size)
    same(got, metric[1](labels, predictions, where=where, size=size))


def test_all_void_is_nothing_counted(metric):
    labels, predictions, where = twins.example((1, 17, 14), CLASSES)
    got = scores(metric, (labels, predictions, np.zeros_like(where), SIZE[:1]))
    for path, value in jax.tree_util.tree_leaves_with_path(got):
        name = jax.tree_util.keystr(path)
        assert np.isnan(value) or "width" in name or (value == 0 and "pixels" in name), name


def test_one_pixel(metric):
    one = np.ones((1, 1, 1), np.int32)
    got = scores(metric, (one, one * 2, one == 1, np.ones((1, 2), np.int32)))
    for path, value in jax.tree_util.tree_leaves_with_path(got):
        name = jax.tree_util.keystr(path)
        assert np.isnan(value) or "width" in name or (value == 0 and "pixels" in name), name


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"labels": np.zeros((1, 3, 4), np.float32)}, TypeError, "labels must be integers"),
        ({"outputs": np.zeros((1, 3, 4), np.float32)}, TypeError, "predictions must be integers"),
        ({"where": np.ones((1, 3, 4), np.int32)}, TypeError, "bool"),
        ({"labels": np.zeros((1, 3, 5), np.int32)}, ValueError, "differ in shape"),
        ({"where": np.ones((1, 3, 5), bool)}, ValueError, "differ in shape"),
        ({"size": np.ones((2, 2), np.int32)}, ValueError, "size must be"),
    ],
)
def test_bad_input(metric, change, error, says):
    arguments = {"labels": np.zeros((1, 3, 4), np.int32), "outputs": np.zeros((1, 3, 4), np.int32), "where": None}
    arguments = arguments | change
    with pytest.raises(error, match=says):
        jax.eval_shape(metric[0].counts, arguments.pop("labels"), arguments.pop("outputs"), **arguments)


@pytest.mark.data
@pytest.mark.parametrize("k", [1, 4])
def test_real_labels_against_a_shifted_copy(shared_data, k):
    """CamVid's labels moved by k pixels: no point is further than k away, bands and tolerances of k hold everything."""
    from PIL import Image

    files = sorted((shared_data / "camvid" / "valannot").glob("*.png"))[10:12]
    images = np.stack([np.asarray(Image.open(f))[:240, :300] for f in files]).astype(np.int32)
    labels = np.pad(images[:, :, k:-k], ((0, 0), (0, 0), (k, k)), mode="edge")  # nothing new comes in at the edges
    guess = np.pad(labels[:, :, :-k], ((0, 0), (0, 0), (k, 0)), mode="edge")

    def run(name, where, **options):
        made = importlib.import_module(f"jaxseg.metrics.{name}").build(num_classes=12, **options)
        state = made.state()
        state.update(jax.jit(made.counts)(labels, guess, where=where))
        return state.compute()

    whole, valid = np.ones(labels.shape, bool), labels != 11
    assert (
        run("boundary_f1", whole, tolerance_px=0)["boundary_f1"]
        < run("boundary_f1", whole, tolerance_px=k)["boundary_f1"]
        == 1
    )
    for points in ("region", "boundary"):
        got = run("hausdorff", whole, points=points)
        assert max(value for value in got["hausdorff_per_class"] if value == value) == k
        assert 0 < got["hd95_max"] <= k and 0 < got["hd95_pooled"] <= got["hausdorff"] <= k
    surface = run("surface_distance", whole, tolerances=(k,))
    assert 0 < surface["assd_pooled"] < k and surface[f"surface_dice_{k}"] == 1
    accuracy = run("trimap", valid, widths=(1, 4 * k, 40))["trimap"]["pixel_accuracy"]
    assert accuracy == sorted(accuracy) and accuracy[0] < 0.8 < accuracy[2] < 1
    narrow, wide = (run("boundary_iou", valid, width_px=w)["mean_boundary_iou"] for w in (k, 10 * k))
    assert narrow < wide < 1

"""Geometry and colour, against hand-made values and against scaling the whole image."""

import cv2
import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError, UnknownNameError
from jaxseg.data.transforms import color
from jaxseg.data.transforms.augment import Augment, mean_fill
from jaxseg.data.transforms.geometry import (
    Geometry,
    move_points,
    place,
    sample_geometry,
    warp_image,
    warp_nearest,
)
from tests.data import trees


def rng(seed=0):
    return np.random.default_rng(seed)


def whole(image, geometry, interpolation):
    """The slow way: scale everything, then slice, then flip."""
    scaled = cv2.resize(image, geometry.scaled[::-1], interpolation=interpolation)
    rows, cols = geometry.inside
    y, x = geometry.offset
    return scaled[rows.start + y : rows.stop + y, cols.start + x : cols.stop + x]


@pytest.mark.parametrize("seed", range(12))
def test_warp_equals_scaling_the_whole_image(seed):
    size = (37, 52)
    where = sample_geometry(rng(seed), size, crop_size_px=(30, 41), scale_range=(0.4, 2.2), flip_probability=0.5)
    image = trees.image_of(seed, size)
    difference = np.abs(warp_image(image, where).astype(int) - whole(image, where, cv2.INTER_LINEAR))
    assert difference.max() <= 1
    # cv2's own exact nearest neighbour rounds ties in fixed point; a formula in whole numbers is the reference.
    label = trees.label_of(seed, size, classes=11, void=11)
    rows = [(2 * i + 1) * size[0] // (2 * where.scaled[0]) for i in range(where.scaled[0])]
    cols = [(2 * i + 1) * size[1] // (2 * where.scaled[1]) for i in range(where.scaled[1])]
    slow = label[np.ix_(rows, cols)]
    r, c = where.inside
    y, x = where.offset
    np.testing.assert_array_equal(warp_nearest(label, where), slow[r.start + y : r.stop + y, c.start + x : c.stop + x])


def test_nearest_takes_pixel_centres_by_hand():
    # Half the size: output pixel i covers input 2i and 2i + 1, its centre is their border, the later one is taken.
    where = Geometry(size=(1, 4), scaled=(1, 2), offset=(0, 0), crop=(1, 2), flip=False)
    np.testing.assert_array_equal(warp_nearest(np.array([[10, 20, 30, 40]]), where), [[20, 40]])
    double = Geometry(size=(1, 2), scaled=(1, 4), offset=(0, 1), crop=(1, 3), flip=False)
    np.testing.assert_array_equal(warp_nearest(np.array([[10, 20]]), double), [[10, 20, 20]])


def test_image_and_label_stay_aligned():
    """A picture whose grey is its label: after any geometry they agree except where interpolation mixes."""
    label = np.kron(np.arange(12).reshape(3, 4), np.ones((16, 16))).astype(np.uint8)
    image = np.repeat((label * 20)[..., None], 3, -1)
    for seed in range(20):
        where = sample_geometry(
            rng(seed), label.shape, crop_size_px=(40, 40), scale_range=(0.5, 2), flip_probability=0.5
        )
        seen = place(warp_image(image, where), where, 250)[..., 0]
        ids = place(warp_nearest(label, where), where, 255)
        exact = seen == np.where(ids == 255, 250, ids * 20)
        mixed = ~exact
        # Mixed pixels lie beside a border of two ids or of the padding, never inside a block.
        edge = cv2.dilate(ids, np.ones((3, 3), np.uint8)) != cv2.erode(ids, np.ones((3, 3), np.uint8))
        assert not (mixed & ~edge)[2:-2, 2:-2].any()  # the border of two ids may lie just outside the crop


def test_crop_larger_than_the_image_pads_with_mean_and_void():
    augment = Augment(crop_size_px=(6, 7), void=255, mean_pixel=(10.4, 20.6, 30.0))
    example = {"image": np.full((4, 5, 3), 99, np.uint8), "label": np.full((4, 5), 3, np.int32)}
    places = set()
    for seed in range(30):
        out = augment(example, rng(seed))
        assert out["image"].shape == (6, 7, 3) and out["label"].shape == (6, 7)
        inside = out["label"] == 3
        assert inside.sum() == 20
        np.testing.assert_array_equal(out["image"][inside], np.full((20, 3), 99))
        np.testing.assert_array_equal(out["image"][~inside], np.tile([10, 21, 30], (22, 1)))
        assert set(np.unique(out["label"])) == {3, 255}
        places.add(tuple(np.argwhere(inside)[0]))
    assert places == {(y, x) for y in range(3) for x in range(3)}


def test_crop_offsets_cover_the_image():
    seen = {sample_geometry(rng(seed), (6, 5), crop_size_px=(4, 4)).offset for seed in range(200)}
    assert seen == {(y, x) for y in range(3) for x in range(2)}


def test_flip_mirrors_every_field():
    augment = Augment(crop_size_px=(2, 3), void=255, flip_probability=1.0)
    example = {
        "image": np.arange(18, dtype=np.uint8).reshape(2, 3, 3),
        "label": np.array([[1, 2, 3], [4, 5, 6]], np.int32),
        "weights": np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32),
        "points": np.array([[0.0, 1.0], [2.0, 0.5]], np.float32),
        "name": "kept",
    }
    out = augment(example, rng())
    np.testing.assert_array_equal(out["image"], example["image"][:, ::-1])
    np.testing.assert_array_equal(out["label"], [[3, 2, 1], [6, 5, 4]])
    np.testing.assert_array_equal(out["weights"], example["weights"][:, ::-1])
    np.testing.assert_allclose(out["points"], [[2, 1], [0, 0.5]])
    assert out["name"] == "kept"


def test_points_follow_their_pixels():
    # Scaling by 2: the centre of pixel (0, 0) moves to 0.5, then the offset (1, 2) is taken off.
    where = Geometry(size=(4, 6), scaled=(8, 12), offset=(1, 2), crop=(5, 5), flip=False)
    np.testing.assert_allclose(move_points(np.array([[0.0, 0.0], [3.0, 2.0]]), where), [[-1.5, -0.5], [4.5, 3.5]])


def test_padding_of_weights_is_zero():
    out = Augment(crop_size_px=(3, 3), void=9)(
        {
            "image": np.zeros((1, 1, 3), np.uint8),
            "label": np.zeros((1, 1), np.int32),
            "weights": np.ones((1, 1), np.float32),
        },
        rng(),
    )
    assert out["weights"].sum() == 1 and (out["label"] == 9).sum() == 8


def test_augment_is_a_function_of_its_generator_and_leaves_the_example_alone():
    augment = Augment(
        crop_size_px=(16, 16),
        void=11,
        scale_range=(0.5, 2),
        flip_probability=0.5,
        color_jitter={"brightness": 0.5, "hue": 0.2},
    )
    example = {"image": trees.image_of(1, (20, 24)), "label": trees.label_of(1, (20, 24), classes=11, void=11)}
    before = {k: v.copy() for k, v in example.items()}
    first, again, other = augment(example, rng(5)), augment(example, rng(5)), augment(example, rng(6))
    for key in example:
        np.testing.assert_array_equal(first[key], again[key])
        np.testing.assert_array_equal(example[key], before[key])
    assert not np.array_equal(first["image"], other["image"])


def test_scale_one_without_jitter_returns_the_pixels():
    example = {"image": trees.image_of(2, (9, 7)), "label": trees.label_of(2, (9, 7), classes=5, void=11)}
    out = Augment(crop_size_px=(9, 7), void=11)(example, rng())
    np.testing.assert_array_equal(out["image"], example["image"])
    np.testing.assert_array_equal(out["label"], example["label"])


def neutral(**changes):
    options = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "turn": 0.0, "grey": 100.0} | changes
    return color.jitter_matrix(**options)


def test_jitter_matrix_by_hand():
    pixel = np.array([200.0, 50.0, 100.0, 1.0])
    np.testing.assert_allclose(neutral() @ pixel, pixel[:3])
    np.testing.assert_allclose(neutral(brightness=0.5) @ pixel, [100, 25, 50])
    # contrast 0.5 about grey 100: 100 + (v - 100) / 2
    np.testing.assert_allclose(neutral(contrast=0.5) @ pixel, [150, 75, 100])
    # brightness first: mean grey is then 50; 50 + (v / 2 - 50) / 2
    np.testing.assert_allclose(neutral(brightness=0.5, contrast=0.5) @ pixel, [75, 37.5, 50])
    # saturation 0: luma 0.299 * 200 + 0.587 * 50 + 0.114 * 100 = 100.55 in every channel
    np.testing.assert_allclose(neutral(saturation=0.0) @ pixel, [100.55] * 3)


def test_hue_turns_keep_grey_and_luma():
    grey = np.array([80.0, 80.0, 80.0, 1.0])
    matrix = neutral(turn=0.3)
    np.testing.assert_allclose(matrix @ grey, grey[:3], atol=1e-3)
    pixel = np.array([120.0, 90.0, 60.0, 1.0])
    np.testing.assert_allclose(color.LUMA @ (matrix @ pixel), color.LUMA @ pixel[:3], atol=1e-6)
    there_and_back = neutral(turn=-0.3)[:, :3] @ matrix[:, :3]
    np.testing.assert_allclose(there_and_back, np.eye(3), atol=1e-9)


def test_jitter_draws_within_its_strengths():
    image = np.full((4, 4, 3), 100, np.uint8)
    values = [int(color.jitter(rng(s), image, brightness=0.2)[0, 0, 0]) for s in range(200)]
    assert 80 <= min(values) <= 84 and 116 <= max(values) <= 120
    np.testing.assert_array_equal(color.jitter(rng(), image), image)


def test_bad_options_are_named():
    with pytest.raises(JaxsegError, match="scale_range"):
        Augment(crop_size_px=(4, 4), void=0, scale_range=(2.0, 1.0))
    with pytest.raises(JaxsegError, match="crop_size_px"):
        Augment(crop_size_px=(0, 4), void=0)
    with pytest.raises(JaxsegError, match="flip_probability"):
        Augment(crop_size_px=(4, 4), void=0, flip_probability=1.5)
    with pytest.raises(JaxsegError, match=r"color_jitter\.hue"):
        Augment(crop_size_px=(4, 4), void=0, color_jitter={"hue": 0.7})
    with pytest.raises(UnknownNameError, match="Did you mean brightness"):
        Augment(crop_size_px=(4, 4), void=0, color_jitter={"brightnes": 0.7})


def test_mean_fill_rounds_and_clips():
    np.testing.assert_array_equal(mean_fill((123.675, 116.28, 300)), [124, 116, 255])

"""The same batches for any number of workers and processes, across a resume; evaluation sees every image once."""

import numpy as np
import pytest

from jaxseg.core.errors import BadExampleError, JaxsegError, UnknownNameError
from jaxseg.data import streams
from jaxseg.data.dataset import Split
from jaxseg.data.pipeline import evaluate_batches, train_batches
from jaxseg.data.transforms.augment import Augment

MEAN = (123.675, 116.28, 103.53)


def take(config, dataset, count, *, state=None, batch_size=4, seed=5, **process):
    iterator = train_batches(config, dataset, batch_size=batch_size, seed=seed, mean_pixel=MEAN, **process)
    try:
        if state is not None:
            iterator.set_state(state)
        return [next(iterator) for _ in range(count)], iterator.get_state()
    finally:
        iterator.close()


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert set(a) == set(b) and {"image", "label", "index"} <= set(a)
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


def test_batches_have_the_contracts_types(camvid_config, camvid):
    (batch,), state = take(camvid_config, camvid, 1)
    assert batch["image"].shape == (4, 20, 16, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (4, 20, 16) and batch["label"].dtype == np.int32
    assert batch["index"].shape == (4,) and batch["index"].dtype == np.int32
    assert type(batch["image"]) is np.ndarray
    assert set(np.unique(batch["label"])) <= set(range(12))
    assert state["next_batch"] == 1


def test_every_epoch_shows_every_example_once_in_another_order(camvid_config, camvid):
    batches, _ = take(camvid_config, camvid, 7)
    stream = np.concatenate([b["index"] for b in batches])
    epochs = stream[:28].reshape(4, 7)
    for epoch in epochs:
        assert sorted(epoch) == list(range(7))
    assert len({tuple(e) for e in epochs}) == 4
    other, _ = take(camvid_config, camvid, 2, seed=6)
    assert not np.array_equal(stream[:8], np.concatenate([b["index"] for b in other]))


def test_a_row_is_the_example_augmented_by_seed_epoch_and_index(camvid_config, camvid):
    """By hand: batch 2 (rows 8..11 of the stream), row 1 is position 9 = epoch 1, place 2."""
    batches, _ = take(camvid_config, camvid, 3)
    index = int(np.random.default_rng((1, 5, 1)).permutation(7)[2])
    assert batches[2]["index"][1] == index
    keys = ("crop_size_px", "scale_range", "flip_probability", "color_jitter")
    augment = Augment(void=11, mean_pixel=MEAN, **{k: camvid_config[k] for k in keys})
    expected = augment(camvid.split("train")[index], np.random.default_rng((2, 5, 1, index)))
    np.testing.assert_array_equal(batches[2]["image"][1], expected["image"])
    np.testing.assert_array_equal(batches[2]["label"][1], expected["label"])


def test_two_workers_give_what_none_give(camvid_config, camvid):
    assert_same(
        take(camvid_config, camvid, 5)[0],
        take(camvid_config | {"workers": 2, "prefetch_batches": 3}, camvid, 5)[0],
    )


@pytest.mark.parametrize("small", [True, False])
def test_without_shared_memory_the_batches_are_the_same(camvid_config, camvid, monkeypatch, small):
    from jaxseg.data import workers

    monkeypatch.setattr(workers, "shared_memory_holds", lambda size: not small)
    assert_same(take(camvid_config, camvid, 2)[0], take(camvid_config | {"workers": 1}, camvid, 2)[0])


def test_two_processes_share_the_global_batches(camvid_config, camvid):
    whole, _ = take(camvid_config, camvid, 5)
    halves = [take(camvid_config, camvid, 5, process_index=p, process_count=2)[0] for p in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*halves, strict=True)]
    assert_same(whole, joined)


def test_resume_is_exact_even_with_other_workers_and_processes(camvid_config, camvid):
    whole, _ = take(camvid_config, camvid, 6)
    _, state = take(camvid_config, camvid, 3)
    assert_same(whole[3:], take(camvid_config, camvid, 3, state=state)[0])
    assert_same(whole[3:], take(camvid_config | {"workers": 2}, camvid, 3, state=state)[0])
    second, _ = take(camvid_config, camvid, 3, state=state, process_index=1, process_count=2)
    assert_same([{k: v[2:] for k, v in b.items()} for b in whole[3:]], second)


def test_the_same_iterator_can_go_back(camvid_config, camvid):
    iterator = train_batches(camvid_config, camvid, batch_size=4, seed=5, mean_pixel=MEAN)
    start = iterator.get_state()
    first = [next(iterator) for _ in range(2)]
    iterator.set_state(start)
    assert_same(first, [next(iterator) for _ in range(2)])
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_a_position_of_another_stream_is_refused(camvid_config, camvid):
    _, state = take(camvid_config, camvid, 1)
    for changes in ({"seed": 6}, {"batch_size": 2}):
        with pytest.raises(JaxsegError, match=next(iter(changes))):
            take(camvid_config, camvid, 1, state=state, **changes)


def test_bad_options_are_named(camvid_config, camvid):
    with pytest.raises(JaxsegError, match="does not divide by 2 processes"):
        take(camvid_config, camvid, 1, batch_size=3, process_count=2)
    with pytest.raises(JaxsegError, match="no split 'trian'. Did you mean train"):
        take(camvid_config | {"train_split": "trian"}, camvid, 1)
    with pytest.raises(UnknownNameError, match="Did you mean contrast"):
        take(camvid_config | {"color_jitter": {"contrst": 1}}, camvid, 1)
    with pytest.raises(JaxsegError, match=r"config\.seed = -1"):
        take(camvid_config, camvid, 1, seed=-1)
    with pytest.raises(JaxsegError, match="invalid_labels"):
        take(camvid_config | {"invalid_labels": "ignore"}, camvid, 1)


def run_evaluation(config, dataset, **process):
    batches = evaluate_batches(config, dataset, "val", batch_size=4, mean_pixel=MEAN, **process)
    out = list(batches)
    assert len(out) == len(batches)
    batches.close()
    return out


def test_evaluation_sees_every_image_once_at_native_size(camvid_config, camvid):
    batches = run_evaluation(camvid_config | {"evaluate_size_px": (19, 27)}, camvid)
    assert [b["index"].tolist() for b in batches] == [[0, 1, 2, 3], [4, -1, -1, -1]]
    assert batches[1]["size"].tolist() == [[18, 24], [0, 0], [0, 0], [0, 0]]
    split = camvid.split("val")
    for batch in batches:
        assert batch["image"].shape == (4, 19, 27, 3)
        for image, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
            if index < 0:
                assert (label == 11).all()
                np.testing.assert_array_equal(image, np.broadcast_to([124, 116, 104], image.shape))
                continue
            np.testing.assert_array_equal(image[:18, :24], split[index]["image"])
            np.testing.assert_array_equal(label[:18, :24], split[index]["label"])
            assert (label[18:] == 11).all() and (label[:, 24:] == 11).all()
            assert (image[18:] == [124, 116, 104]).all() and (image[:, 24:] == [124, 116, 104]).all()


def test_evaluation_on_two_processes_is_the_same_rows(camvid_config, camvid):
    whole = run_evaluation(camvid_config, camvid)
    halves = [run_evaluation(camvid_config, camvid, process_index=p, process_count=2) for p in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*halves, strict=True)]
    assert_same(whole, joined)
    counted = [i for b in joined for i in b["index"] if i >= 0]
    assert counted == list(range(5))


def test_evaluation_refuses_to_cut_images(camvid_config, camvid):
    with pytest.raises(JaxsegError, match=r"evaluate_size_px = \(17, 24\) is smaller"):
        run_evaluation(camvid_config | {"evaluate_size_px": (17, 24)}, camvid)


@pytest.fixture
def broken(monkeypatch):
    """Example 2 of every split no longer decodes."""
    healthy = Split.__getitem__

    def read(self, index):
        if index == 2:
            raise BadExampleError(f"{self.name_of(index)}: broken")
        return healthy(self, index)

    monkeypatch.setattr(Split, "__getitem__", read)


def test_a_bad_example_stops_training_by_name(camvid_config, camvid, broken):
    with pytest.raises(BadExampleError, match=r"train/train_2\.png: broken"):
        take(camvid_config, camvid, 2)


def test_a_bad_example_is_replaced_by_the_next_and_counted(camvid_config, camvid, broken, capsys):
    iterator = train_batches(camvid_config | {"on_bad_example": "skip"}, camvid, batch_size=7, seed=5, mean_pixel=MEAN)
    epochs = [next(iterator)["index"].tolist() for _ in range(2)]
    iterator.close()
    for epoch, shown in enumerate(epochs):
        order = streams.permutation(5, epoch, 7).tolist()
        place = order.index(2)
        assert shown == [*order[:place], order[(place + 1) % 7], *order[place + 1 :]]
    assert iterator.replaced == {"train/train_2.png": 2}
    assert capsys.readouterr().err.count("train/train_2.png") == 1


def test_a_bad_example_is_left_out_of_evaluation_and_named(camvid_config, camvid, broken):
    with pytest.raises(BadExampleError, match="val_2"):
        run_evaluation(camvid_config, camvid)
    batches = evaluate_batches(camvid_config | {"on_bad_example": "skip"}, camvid, "val", batch_size=4, mean_pixel=MEAN)
    first, second = list(batches)
    assert first["index"].tolist() == [0, 1, -1, 3] and second["index"].tolist() == [4, -1, -1, -1]
    assert (first["label"][2] == 11).all()
    assert batches.skipped == ["val/val_2.png"]
    batches.close()


def test_permutation_is_one_and_depends_on_seed_and_epoch():
    orders = [streams.permutation(s, e, 50).tolist() for s, e in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3

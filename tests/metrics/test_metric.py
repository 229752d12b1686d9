"""The state of a metric: exact sums, rows, merging, files, and what it refuses."""

import numpy as np
import pytest

from jaxseg.core.errors import JaxsegError, UnknownNameError
from jaxseg.metrics.confusion import confusion_numpy
from jaxseg.metrics.metric import Metric, make_metrics

SUM = Metric(lambda labels, outputs, *, where, size=None: {}, lambda sums: {"total": float(sums["n"].sum())})
ROWS = Metric(SUM.counts, lambda rows: {"mean": float(rows["score"].mean())}, keep="rows")


def test_sums_are_int64():
    state = SUM.state()
    for _ in range(3):
        state.update({"n": np.full((2, 2), 2**31 - 1, np.int32)})
    arrays = state.to_arrays()
    assert arrays["n"].dtype == np.int64 and arrays["n"].tolist() == [6 * (2**31 - 1)] * 2
    assert state.compute() == {"total": 12.0 * (2**31 - 1)}


def test_rows_are_kept():
    state = ROWS.state()
    state.update({"score": np.asarray([0.5, 1.0], np.float32)})
    state.update({"score": np.asarray([3.0], np.float32)})
    assert state.to_arrays()["score"].tolist() == [0.5, 1.0, 3.0] and state.compute() == {"mean": 1.5}


@pytest.mark.parametrize(("metric", "name"), [(SUM, "n"), (ROWS, "score")])
def test_merge_equals_one_state_and_arrays_carry_it(metric, name):
    batches = [np.asarray([1, 2]), np.asarray([5]), np.asarray([7, 7, 7])]
    whole, left, right = metric.state(), metric.state(), metric.state()
    for batch in batches:
        whole.update({name: batch})
    left.update({name: batches[0]})
    for batch in batches[1:]:
        right.update({name: batch})
    left.merge(metric.state(right.to_arrays()))
    left.merge(metric.state())
    np.testing.assert_array_equal(left.to_arrays()[name], whole.to_arrays()[name])
    assert left.compute() == whole.compute()


def test_a_state_merges_with_itself_and_leaves_the_other_alone():
    for metric, name in ((SUM, "n"), (ROWS, "score")):
        one, other = metric.state(), metric.state()
        one.update({name: np.asarray([1, 2])})
        other.merge(one)
        other.update({name: np.asarray([4])})
        other.merge(other)
        assert one.to_arrays()[name].sum() == 3 and other.to_arrays()[name].sum() == 14


def test_work_on_the_host_comes_before_the_sum():
    metric = Metric(SUM.counts, SUM.compute, on_host=lambda rows: {"n": rows["n"] * 2})
    state = metric.state()
    state.update({"n": np.asarray([1, 2])})
    assert state.compute() == {"total": 6.0}
    assert metric.state(state.to_arrays()).compute() == {"total": 6.0}


def test_what_a_state_refuses():
    state = SUM.state()
    with pytest.raises(ValueError, match="nothing was counted"):
        state.compute()
    with pytest.raises(ValueError, match="'n' are integers"):
        state.update({"n": np.zeros(3, np.float32)})
    state.update({"n": np.zeros((1, 3), np.int32)})
    with pytest.raises(ValueError, match="do not fit"):
        state.update({"n": np.zeros((1, 4), np.int32)})


@pytest.mark.parametrize(
    "config", [("confusion",), ["confusion"], {"confusion": {}}, ({"confusion": {}},), "confusion"]
)
def test_metrics_of_a_config(config):
    metrics = make_metrics(config, num_classes=3)
    assert list(metrics) == ["confusion"]
    labels = np.asarray([[[0, 1, 2]]], np.int32)
    counts = metrics["confusion"].counts(labels, labels[..., ::-1], where=labels < 2)
    expected = confusion_numpy(labels, labels[..., ::-1], num_classes=3, where=labels < 2)
    np.testing.assert_array_equal(counts["confusion"], expected[None])


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        (("confusoin",), UnknownNameError, "confusion"),
        (({"confusion": {"bins": 3}},), UnknownNameError, "config.evaluate.metrics.confusion.bins"),
        (("confusion", {"confusion": {}}), JaxsegError, "twice"),
        ((3,), JaxsegError, "takes names"),
        (({"confusion": 1.0},), JaxsegError, "takes names"),
        (("metric",), UnknownNameError, "no 'build'"),
    ],
)
def test_bad_configs(config, error, says):
    with pytest.raises(error, match=says):
        make_metrics(config, num_classes=3)

"""The event files are read back by their own record format: length, checksum, message, checksum."""

import struct

import pytest
from tensorboardX.proto import event_pb2

from jaxseg.report.tensorboard import TensorBoardEvents
from tests.report.results import INFO, IOU, result


def read_events(workdir):
    """Every event of every file, files in the order of their names (that is, of time)."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return events


def scalars(events):
    return {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value if v.HasField("simple_value")}


def test_scalars_and_pictures(tmp_path):
    observer = TensorBoardEvents(tmp_path)
    observer.on_start(None, str(tmp_path), 20, 0)
    observer.on_log(10, {"loss": 0.5, "learning_rate": 0.25})
    observer.on_evaluation(20, result(samples=2), INFO)
    observer.on_end({})
    events = read_events(tmp_path)
    found = scalars(events)
    assert found[10, "train/loss"] == 0.5 and found[10, "train/learning_rate"] == 0.25
    assert found[20, "evaluate/miou_present"] == pytest.approx(sum(IOU) / 2)
    assert found[20, "iou/red"] == pytest.approx(IOU[1])
    assert (20, "iou/absent") not in found
    pictures = {v.tag: v.image for e in events for v in e.summary.value if v.HasField("image")}
    assert set(pictures) == {"samples/00", "samples/01"}
    assert pictures["samples/00"].encoded_image_string.startswith(b"\x89PNG")
    assert pictures["samples/00"].width == 3 * 260 + 4 * 8


@pytest.mark.parametrize(("start", "purged_from"), [(0, 1), (10, 11)])
def test_a_resumed_run_purges_what_came_after_its_start(tmp_path, start, purged_from):
    observer = TensorBoardEvents(tmp_path)
    observer.on_start(None, str(tmp_path), 20, start)
    observer.on_end({})
    sessions = [e for e in read_events(tmp_path) if e.HasField("session_log")]
    assert [(e.step, e.session_log.status) for e in sessions] == [(purged_from, event_pb2.SessionLog.START)]

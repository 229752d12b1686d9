"""The figures of the bench: what is measured is written, ratios and floors follow from it, wrong options are told."""

import dataclasses
import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from experiments.defaults import INCEPTION, defaults
from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import make_mesh
from jaxseg.ops.conv import conv
from jaxseg.tools.bench import collect, device, mode, peers
from jaxseg.tools.bench.clock import Timing, alternate, ratios
from jaxseg.tools.bench.program import Program, lower_program, on_one_cpu, plain_flops
from jaxseg.tools.bench.summary import bench_markdown, bench_text, in_bytes, in_seconds
from tests.conftest import CACHE, REPOSITORY

HEIGHT, WIDTH, CLASSES, BATCH = 6, 10, 21, 8
# A 3x3 convolution that pads with zeros: along n pixels 3 n - 2 taps see the image.
CONVOLUTION_FLOPS = 2 * (3 * HEIGHT - 2) * (3 * WIDTH - 2) * 3 * CLASSES
PARAMETERS = 3 * 3 * 3 * CLASSES + CLASSES


def tiny_config(**bench):
    config = defaults()
    config.model = ConfigDict({"name": "tests.tools.one_convolution", **INCEPTION})
    config.data.update({"name": "shapes", "crop_size_px": (HEIGHT, WIDTH), "workers": 0})
    config.data.data_dir = str(CACHE / "data")
    config.data.builder = ConfigDict(
        {"train_count": 24, "val_count": 6, "min_size_px": (48, 48), "max_size_px": (64, 72)}
    )
    config.train.batch_size = BATCH
    config.bench.update({"steps": 4, "warmup_steps": 1, "input_batches": 2} | bench)
    return config.lock()


@pytest.fixture
def small(monkeypatch):
    """Rates of the device from small arrays: they are slow to measure and not what is tested here."""
    monkeypatch.setattr(device, "CPU_MATRIX_SIDES", (64,))
    monkeypatch.setattr(device, "CPU_COPY_BYTES", (4096,))


class FakePeer:
    """Counts its calls."""

    def __init__(self, parameters=PARAMETERS):
        self.parameters, self.calls = parameters, []

    def prepare(self, parts):
        self.calls.append("prepare")

    def train_step(self):
        self.calls.append("train")

    def inference(self):
        self.calls.append("inference")

    def wait(self):
        self.calls.append("wait")

    def facts(self):
        return {"versions": {"fake": "1.0"}, "parameters": self.parameters}


def with_peer(monkeypatch, peer):
    monkeypatch.setattr(mode, "make_peer", lambda *_: peer)
    return peer


def test_works_take_turns_and_the_warm_up_does_not_count():
    calls, now, spent = [], [0.0], [0.0]
    durations = {"a": iter([50.0, 1.0, 2.0, 9.0]), "b": iter([50.0, 4.0, 4.0, 6.0])}

    def work(name):
        calls.append(name)
        seconds = next(durations[name])
        now[0] += seconds
        spent[0] += 2 * seconds

    works = {name: lambda name=name: work(name) for name in "ab"}
    found = alternate(works, steps=3, warmup_steps=1, clock=lambda: now[0], cpu_clock=lambda: spent[0])
    assert calls == list("abababab")
    assert found["a"] == Timing((1.0, 2.0, 9.0), (2.0, 4.0, 18.0))
    assert found["a"].to_json() == {
        "steps": 3,
        "median": 2.0,
        "min": 1.0,
        "quartiles": [1.5, 5.5],
        "cpu_median": 4.0,
        "cpu_min": 2.0,
    }
    assert ratios(found["a"], found["b"]) == {
        "ratio": 0.5,
        "ratio_of_minima": 0.25,
        "ratio_of_cpu_medians": 0.5,
    }


def test_one_step_has_no_spread():
    assert Timing((3.0,), (1.0,)).to_json()["quartiles"] == [3.0, 3.0]


def test_flops_and_memory_of_a_known_product():
    a, b = jax.ShapeDtypeStruct((32, 48), jnp.float32), jax.ShapeDtypeStruct((48, 16), jnp.float32)
    product = jax.jit(lambda a, b: a @ b)
    program = lower_program(product, a, b, flops=plain_flops(product, a, b))()
    assert program.flops == 2 * 32 * 48 * 16
    memory = program.memory
    assert memory["arguments"] == 4 * (32 * 48 + 48 * 16) and memory["outputs"] == 4 * 32 * 16
    assert memory["total"] == memory["arguments"] + memory["outputs"] + memory["temporary"] and memory["aliased"] == 0
    assert program.lower_seconds > 0 and program.compile_seconds > 0


def test_what_is_donated_is_not_counted_twice():
    a = jax.ShapeDtypeStruct((1024,), jnp.float32)
    memory = lower_program(jax.jit(lambda a: a + 1, donate_argnums=0), a, flops=1.0)().memory
    assert memory["aliased"] == 4096 and memory["total"] == 4096 + memory["temporary"]


def test_flops_are_those_of_the_convolution_whatever_its_lowering():
    x, kernel = jax.ShapeDtypeStruct((2, 8, 9, 32), jnp.float32), jax.ShapeDtypeStruct((3, 3, 1, 32), jnp.float32)
    flops = plain_flops(jax.jit(lambda x, k: conv(x, k, groups=32)), x, kernel)
    assert flops == 2 * 2 * (3 * 8 - 2) * (3 * 9 - 2) * 32


def test_rates_of_the_device(small):
    mesh = make_mesh()
    found = device.measure_device(mesh, jnp.bfloat16)
    assert (found["platform"], found["devices"], found["matrix_side"]) == ("cpu", 4, 64)
    assert found["matrix_dtype"] == "bfloat16" and found["bandwidth_array_bytes"] == 4096
    assert min(found["matrix_rate_flops_s"], found["matrix_rate_flops_cpu_s"], found["bandwidth_bytes_s"]) > 0
    better = found | {"bandwidth_bytes_s": 1e30, "matrix_rate_flops_s": 1.0}
    joined = device.quickest(found, better)
    assert joined == found | {"bandwidth_bytes_s": 1e30, "matrix_rate_flops_s": max(found["matrix_rate_flops_s"], 1.0)}


def check_part(found, rates, flops):
    """What follows from what was measured."""
    median = found["seconds"]["median"]
    assert found["seconds"]["steps"] == 4 and found["seconds"]["min"] <= median
    assert found["images_per_second"] == pytest.approx(BATCH / median)
    floor = found["floor"]
    assert found["program"]["flops"] >= flops and floor["bytes_seconds"] > 0
    assert floor["flops_seconds"] == pytest.approx(found["program"]["flops"] / rates["matrix_rate_flops_s"])
    assert found["share_of_matrix_rate"] == pytest.approx(floor["flops_seconds"] / median)
    assert found["times_floor"] == pytest.approx(median / max(floor.values()))
    theirs = found["peer"]["seconds"]["median"]
    assert found["against"]["ratio"] == pytest.approx(median / theirs)
    assert found["peer"]["images_per_second"] == pytest.approx(BATCH / theirs)


def test_a_bench_beside_a_peer(small, monkeypatch, tmp_path, capsys):
    peer = with_peer(monkeypatch, FakePeer())
    assert mode.bench_mode(tiny_config(), tmp_path / "row", against="smp") == 0
    result = json.loads((tmp_path / "row" / "bench.json").read_text())
    assert peer.calls == ["prepare"] + ["train", "wait"] * 5 + ["inference", "wait"] * 5
    assert result["parameters"] == PARAMETERS and "note" not in result["peer"]
    # Forward and both gradients but the image's; and a few operations a pixel besides.
    check_part(result["inference"], result["device"], BATCH * CONVOLUTION_FLOPS)
    check_part(result["train"], result["device"], 2 * BATCH * CONVOLUTION_FLOPS)
    assert result["inference"]["program"]["flops"] < 1.2 * BATCH * CONVOLUTION_FLOPS
    assert result["memory"]["process_peak_bytes"] > 1e7
    settings = result["settings"]
    assert (settings["batch_size"], settings["size_px"], settings["classes"]) == (BATCH, [HEIGHT, WIDTH], CLASSES)
    printed = capsys.readouterr().out
    assert printed.startswith(bench_text(result)) and "jaxseg / peer" in printed


def test_several_steps_a_turn_are_begun_and_then_awaited_once(small, monkeypatch):
    peer = with_peer(monkeypatch, FakePeer())
    timings = mode.alternate
    monkeypatch.setattr(mode, "alternate", lambda *a, **k: {n: Timing((6.0,), (3.0,)) for n in timings(*a, **k)})
    result = mode.bench(tiny_config(steps=1, steps_a_turn=3, parts=("train",)), against="smp")
    assert peer.calls == ["prepare"] + ["train", "train", "train", "wait"] * 2
    assert result["train"]["seconds"]["median"] == 2.0 and result["train"]["seconds"]["cpu_median"] == 1.0
    assert result["settings"]["steps_a_turn"] == 3


def test_processor_times_are_compared_on_cpus_alone():
    program = Program(None, 1.0, 1.0, 8.0, 8.0, 8.0, {})
    timings = {"jaxseg": Timing((2.0,), (1.0,)), "peer": Timing((4.0,), (1.0,))}
    rates = {"matrix_rate_flops_s": 4.0, "matrix_rate_flops_cpu_s": 4.0, "bandwidth_bytes_s": 8.0, "devices": 1}
    for platform, share in (("cpu", {"ratio_of_cpu_medians": 1.0}), ("gpu", {})):
        found = mode.figures(program, timings, rates | {"platform": platform}, batch_size=1)
        assert found["against"] == {"ratio": 0.5, "ratio_of_minima": 0.5} | share
        assert ("share_of_matrix_rate_cpu" in found) == (platform == "cpu")


def test_flops_are_counted_on_a_cpu_and_need_one(monkeypatch):
    run = types.SimpleNamespace(mesh=make_mesh())
    assert on_one_cpu(run) is run
    gpu = types.SimpleNamespace(devices=types.SimpleNamespace(flat=[types.SimpleNamespace(platform="gpu")]))

    @dataclasses.dataclass
    class Placed:
        mesh: object

    assert on_one_cpu(Placed(gpu)).mesh.devices.size == 1

    def none(platform):
        raise RuntimeError(f"Unknown backend {platform}")

    monkeypatch.setattr(jax, "devices", none)
    with pytest.raises(JaxsegError, match="JAX_PLATFORMS, as in cuda,cpu"):
        on_one_cpu(Placed(gpu))


def test_networks_that_differ_are_told(small, monkeypatch):
    with_peer(monkeypatch, FakePeer(parameters=600))
    result = mode.bench(tiny_config(parts=("inference",), profile_steps=1), against="smp")
    assert result["inference"]["profile"]["seconds_a_step"] > 0 and "profile:" in bench_text(result)
    assert result["peer"]["parameter_difference"] == pytest.approx((PARAMETERS - 600) / 600)
    assert result["peer"]["note"] in bench_text(result) and "train" not in result
    assert mode.parameter_difference(1005, 1000) == {"parameter_difference": 0.005}


def test_the_input_pipeline(small):
    result = mode.bench(tiny_config(parts=("input",), steps=2))
    found = result["input"]
    assert found["images_per_second"] > 0 and 0 <= found["input_wait_share"] <= 1 and found["workers"] == 0
    assert found["training_images_per_second"] == pytest.approx(BATCH / found["step_seconds"])
    assert "train" not in result and "of it waiting for input" in bench_text(result)


def test_a_data_set_that_is_not_there_is_told_and_the_rest_measured(small, monkeypatch):
    def closed(*_):
        raise JaxsegError("no images here")

    monkeypatch.setattr("jaxseg.tools.bench.input.make_run", closed)
    result = mode.bench(tiny_config(parts=("train", "input")))
    assert result["input"] == {"skipped": "no images here"} and result["train"]["images_per_second"] > 0
    assert "not measured: no images here" in bench_text(result)


@pytest.mark.parametrize(
    ("bench", "sentence"),
    [
        ({"parts": ("trian",)}, "'trian' does not exist. Did you mean train"),
        ({"parts": ()}, "is empty; give some of train, inference, input"),
        ({"steps": 0}, "config.bench.steps = 0 must be at least 1"),
        ({"warmup_steps": -1}, "config.bench.warmup_steps = -1 must be at least 0"),
    ],
)
def test_wrong_options(bench, sentence):
    with pytest.raises(JaxsegError, match=sentence.replace(".", r"\.")):
        mode.bench(tiny_config(**bench))


def make_peer_of(against, model, *, devices=1, loss="cross_entropy"):
    config = defaults()
    config.model = ConfigDict({"name": model})
    config.loss = ConfigDict({loss: 1.0})
    run = types.SimpleNamespace(
        mesh=make_mesh({"data": devices}, devices=jax.devices()[:devices]), info=types.SimpleNamespace(num_classes=3)
    )
    return peers.make_peer(against, config, run, {})


def test_a_peer_that_there_is_not(monkeypatch):
    assert make_peer_of("none", "anything") is None
    with pytest.raises(JaxsegError, match="no counterpart of config.model.name = 'segnet'. --against=none times"):
        make_peer_of("smp", "segnet")
    with pytest.raises(JaxsegError, match="--against=torch has it"):
        make_peer_of("smp", "tiramisu")
    with pytest.raises(JaxsegError, match="on one device"):
        make_peer_of("smp", "unet_encoder", devices=4)
    with pytest.raises(JaxsegError, match="trains with cross-entropy"):
        make_peer_of("smp", "unet_encoder", loss="dice")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(JaxsegError, match="torch is not installed. .*pip install -r requirements-references.txt"):
        make_peer_of("smp", "unet_encoder")


def test_against_belongs_to_the_bench():
    command = [sys.executable, "-m", "jaxseg.main", "--config=experiments/bench.py", "--against=smp"]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 2 and "--against=smp belongs to --mode=bench, not to --mode=train" in process.stderr
    process = subprocess.run([*command, "--against=smb"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert process.returncode == 2 and "torchvision" in process.stderr and "Traceback" not in process.stderr


def row(folder, result, **device_facts):
    folder.mkdir()
    (folder / "bench.json").write_text(json.dumps(result | {"device": result["device"] | device_facts}))
    return folder


def test_rows_of_one_machine_become_a_table(small, monkeypatch, tmp_path):
    with_peer(monkeypatch, FakePeer())
    result = mode.bench(tiny_config(parts=("inference",)), against="smp")
    folders = [row(tmp_path / "one", result, cores=2), row(tmp_path / "two", result, cores=2)]
    monkeypatch.setattr(sys, "argv", ["collect", str(tmp_path / "results"), *map(str, folders)])
    collect.main()
    name = f"bench-cpu2-{result['made_with']['date'][:10]}"
    assert list(json.loads((tmp_path / "results" / f"{name}.json").read_text())["rows"]) == ["one", "two"]
    table = (tmp_path / "results" / f"{name}.md").read_text()
    assert table == bench_markdown(collect.collect(folders)) and "fake 1.0" in table
    ratio = f"{result['inference']['against']['ratio']:.2f}"
    assert "| one | 8 x 6 x 10 float32 | inference |" in table and f"| {ratio}" in table
    with pytest.raises(JaxsegError, match="several machines: cpu16, cpu2"):
        collect.collect([folders[0], row(tmp_path / "three", result, cores=16)])
    with pytest.raises(JaxsegError, match="bench.json is not there"):
        collect.collect([tmp_path])


def test_names_of_machines():
    assert collect.machine_name({"platform": "gpu", "kind": "NVIDIA H200", "devices": 1}) == "nvidia-h200"
    assert collect.machine_name({"platform": "tpu", "kind": "TPU v5 lite", "devices": 4}) == "4x-tpu-v5-lite"


def test_numbers_as_people_read_them():
    assert [in_seconds(x) for x in (1.234, 0.0531, 8.2e-6)] == ["1.23 s", "53.1 ms", "8.2 us"]
    assert [in_bytes(x) for x in (12, 1.31e9, 2e15)] == ["12 B", "1.31 GB", "2e+03 TB"]

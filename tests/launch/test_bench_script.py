"""launch/bench.sh as a command, in an environment whose Python only tells how it was called."""

import shutil

import pytest

from tests.launch.test_scripts import REPOSITORY, call, checkout

__all__ = ["checkout"]
ROWS = {
    "deeplab_v3_resnet50": "torchvision",
    "deeplab_v3plus_mobilenet_v2": "smp",
    "unet_resnet34": "smp",
    "tiramisu56": "torch",
    "deeplab_v3plus_xception65": "smp",
}


@pytest.fixture
def with_references(checkout):
    """The environment holds PyTorch's packages too."""
    (checkout / "requirements-references.txt").write_text("b==1\n")
    (checkout / ".venv" / "installed-requirements-references.txt").write_text("accelerator cpu\nb==1\n")
    return checkout


def arguments_of(line):
    return line.split("||")[0].split("|")


def bench(checkout, *arguments):
    return call(checkout, "bench.sh", "--accelerator=cpu", *arguments)


def test_the_rows_are_those_of_the_experiment():
    from experiments.bench import MODELS

    assert list(MODELS) == list(ROWS)


def test_each_row_beside_its_peer_and_then_the_table(with_references):
    process, calls = bench(with_references)
    assert process.returncode == 0, process.stderr
    assert len(calls) == len(ROWS) + 1
    for line, (row, peer) in zip(calls[:-1], ROWS.items(), strict=True):
        flags = [f"--config=experiments/bench.py:{row}", f"--against={peer}", f"--workdir=runs/bench/{row}"]
        assert arguments_of(line) == ["-m", "jaxseg.main", "--mode=bench", *flags]
        assert f"||{with_references}|" in line
    results = str(with_references / "experiments" / "results")
    folders = [f"runs/bench/{row}" for row in ROWS]
    assert arguments_of(calls[-1]) == ["-m", "jaxseg.tools.bench.collect", results, *folders]


def test_one_row_alone_with_options(checkout):
    process, calls = bench(checkout, "--alone", "tiramisu56", "--config.bench.steps=20", "--results=out")
    assert process.returncode == 0, process.stderr
    assert arguments_of(calls[0])[3:] == [
        "--config=experiments/bench.py:tiramisu56",
        "--against=none",
        "--workdir=runs/bench/tiramisu56",
        "--config.bench.steps=20",
    ]
    assert arguments_of(calls[1])[2:] == [str(checkout.parent / "caller" / "out"), "runs/bench/tiramisu56"]


def test_an_accelerators_table(with_references):
    process, calls = bench(with_references, "--large", "unet_resnet34", "tiramisu56@4x256", "deeplab_v3_resnet50")
    assert process.returncode == 0, process.stderr
    rows = ["unet_resnet34@16x512", "unet_resnet34@8x1024", "tiramisu56@4x256"]
    rows += ["deeplab_v3_resnet50@16x513", "deeplab_v3_resnet50@8x1024"]
    options = ["train.compute_dtype=bfloat16", "bench.steps_a_turn=5", "bench.torch_compile=True"]
    for line, row in zip(calls[:-1], rows, strict=True):
        flags = [f"--config=experiments/bench.py:{row}", f"--against={ROWS[row.split('@')[0]]}"]
        flags += [f"--workdir=runs/bench/{row}", *(f"--config.{option}" for option in options)]
        assert arguments_of(line)[3:] == flags
    assert arguments_of(calls[-1])[3:] == [f"runs/bench/{row}" for row in rows]


def test_an_environment_as_it_is(checkout):
    """Neither stamps nor pins are looked at; there has to be a Python."""
    (checkout / ".venv" / "accelerator.txt").write_text("tpu\n")
    process, calls = bench(checkout, "--as-is", "unet_resnet34")
    assert process.returncode == 0 and len(calls) == 2, process.stderr
    assert arguments_of(calls[0])[4] == "--against=smp"
    (checkout / ".venv" / "bin" / "python").unlink()
    process, calls = bench(checkout, "--as-is", "unet_resnet34")
    assert process.returncode == 2 and "has no bin/python" in process.stderr


def test_the_size_of_a_row():
    from experiments.bench import get_config

    config = get_config("deeplab_v3plus_xception65@3x65")
    assert (config.train.batch_size, config.data.crop_size_px, config.bench.parts) == (3, (65, 65), ("inference",))
    assert get_config("tiramisu56").train.batch_size == 3
    for wrong in ("tiramisu56@3", "tiramisu56@3x", "unet", "tiramisu56@3x65x65"):
        with pytest.raises(ValueError, match="@BATCHxSIDE"):
            get_config(wrong)


def test_a_row_that_fails_does_not_keep_the_others_from_running(with_references):
    (with_references.parent / "failing").write_text("bench.py:tiramisu56")
    process, calls = bench(with_references, "tiramisu56", "unet_resnet34")
    assert process.returncode == 1 and process.stderr.endswith("jaxseg: failed: tiramisu56\n")
    assert arguments_of(calls[-1])[3:] == ["runs/bench/unet_resnet34"]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [("tiramisu65", "there is no row tiramisu65; rows are deeplab_v3_resnet50"), ("--alon", "--alon is not known")],
)
def test_what_there_is_not(checkout, argument, sentence):
    process, calls = bench(checkout, argument)
    assert process.returncode == 2 and calls == [] and sentence in process.stderr


@pytest.mark.parametrize("holds", [True, False])
def test_an_environment_of_someone_else_is_taken_where_it_holds_the_requirements(checkout, tmp_path, holds):
    theirs = tmp_path / "theirs" / "bin"
    theirs.mkdir(parents=True)
    shutil.copy(checkout / ".venv" / "bin" / "python", theirs / "python")
    python = (theirs / "python").read_text()
    # The check of the requirements comes on standard input, as `python - FILE...`.
    answer = f'[[ "$1" == - ]] && exit {int(not holds)}\n'
    (theirs / "python").write_text(python.replace("printf", answer + "printf", 1))
    script = (checkout / "launch" / "bench.sh").read_text()
    # The script is started without JAXSEG_VENV by `call`: the default stands in for the variable.
    environment = (checkout / "launch" / "environment.sh").read_text()
    (checkout / "launch" / "environment.sh").write_text(
        environment.replace('VENV="${JAXSEG_VENV:-$REPOSITORY/.venv}"', f'VENV="{theirs.parent}"')
    )
    assert "holds_requirements" in script
    process, calls = bench(checkout, "--alone", "tiramisu56")
    if holds:
        assert process.returncode == 0 and len(calls) == 2, process.stderr
    else:
        assert process.returncode == 2 and "was not made by this script" in process.stderr


def test_the_check_of_the_requirements_reads_their_pins(tmp_path):
    """The same lines of Python, on this environment: its own pins hold, another version does not."""
    import subprocess
    import sys

    text = (REPOSITORY / "launch" / "bench.sh").read_text()
    code = text.split("<<'PYTHON' 2>/dev/null\n")[1].split("PYTHON\n")[0]
    for version, status in ((pytest.__version__, 0), ("0.1", 1)):
        (tmp_path / "r.txt").write_text(f"# why\n\npytest=={version}   # runs the tests\n")
        process = subprocess.run([sys.executable, "-", str(tmp_path / "r.txt")], input=code, text=True, check=False)
        assert process.returncode == status

"""launch/local.sh and launch/test.sh as commands, in an environment whose Python only tells how it was called."""

import os
import pathlib
import shutil
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def checkout(tmp_path):
    """A copy of the scripts in a folder with a space, with an environment that looks installed."""
    root = tmp_path / "a copy"
    shutil.copytree(REPOSITORY / "launch", root / "launch")
    (root / "experiments").mkdir()
    (root / "experiments" / "deeplab_voc.py").touch()
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"#!{shutil.which('bash')}\n"
        'case "$*" in *version_info*) exit 0 ;; esac\n'
        f"printf '%s|' \"$@\" >>'{tmp_path}/calls'; echo \"|$PWD|$PYTHONPATH\" >>'{tmp_path}/calls'\n"
        f'[[ "$*" != *"$(cat \'{tmp_path}/failing\' 2>/dev/null || echo nothing)"* ]]\n'
    )
    python.chmod(0o755)
    (root / ".venv" / "accelerator.txt").write_text("cpu\n")
    for name in ("requirements.txt", "requirements-test.txt"):
        (root / name).write_text("a==1\n")
        (root / ".venv" / f"installed-{name}").write_text("accelerator cpu\na==1\n")
    (tmp_path / "caller").mkdir()
    return root


def call(checkout, script, *arguments):
    """Runs the script from the caller's folder; returns the process and how Python was called."""
    tmp_path = checkout.parent
    (tmp_path / "calls").unlink(missing_ok=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    process = subprocess.run(
        [str(checkout / "launch" / script), *arguments],
        cwd=tmp_path / "caller",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    return process, calls


def test_a_config_is_found_in_the_repository(checkout):
    process, calls = call(
        checkout,
        "local.sh",
        "--config=experiments/deeplab_voc.py:demo",
        "--accelerator=cpu",
        "--workdir=out",
        "--x=a b",
    )
    config = f"--config={checkout}/experiments/deeplab_voc.py:demo"
    caller = checkout.parent / "caller"
    assert calls == [f"-P|-m|jaxseg.main|{config}|--workdir=out|--x=a b||{caller}|{checkout}"]
    assert process.returncode == 0 and process.stderr == ""


def test_the_callers_own_config_comes_first(checkout):
    mine = checkout.parent / "caller" / "experiments"
    mine.mkdir()
    (mine / "deeplab_voc.py").touch()
    _, calls = call(checkout, "local.sh", "--config", "experiments/deeplab_voc.py:demo", "--accelerator", "cpu")
    assert calls[0].startswith("-P|-m|jaxseg.main|--config=experiments/deeplab_voc.py:demo||")


@pytest.mark.parametrize(("config", "in_repository"), [("experiments/deeplab_vok.py", True), ("mine.py", False)])
def test_a_mistyped_config_is_passed_on_to_be_answered(checkout, config, in_repository):
    _, calls = call(checkout, "local.sh", f"--config={config}", "--accelerator=cpu")
    expected = f"{checkout}/{config}" if in_repository else config
    assert calls[0].startswith(f"-P|-m|jaxseg.main|--config={expected}||")


def test_the_exit_status_is_that_of_the_run(checkout):
    (checkout.parent / "failing").write_text("--mode=evaluate")
    process, _ = call(checkout, "local.sh", "--config=x.py", "--mode=evaluate", "--accelerator=cpu")
    assert process.returncode == 1


@pytest.mark.parametrize("arguments", [(), ("--config",), ("--config=x.py", "--accelerator")])
def test_a_call_without_its_value_shows_one(checkout, arguments):
    process, calls = call(checkout, "local.sh", *arguments)
    assert process.returncode == 2 and calls == []
    assert "experiments/deeplab_voc.py:demo" in process.stderr or "cpu, cuda or tpu" in process.stderr


def test_lint_types_and_tests_run_in_the_repository(checkout):
    process, calls = call(checkout, "test.sh", "tests/core", "-k", "mesh")
    assert process.returncode == 0, process.stderr
    modules = [line.split("||")[0].split("|") for line in calls]
    assert modules[:3] == [["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."], ["-m", "mypy"]]
    assert modules[3][:3] == ["-m", "pytest", "-n"] and int(modules[3][3]) >= 1
    assert modules[3][4:] == ["-m", "not slow", "tests/core", "-k", "mesh"]
    assert all(f"||{checkout}|" in line for line in calls)


@pytest.mark.parametrize(("failing", "name"), [("ruff check", "lint"), ("mypy", "types"), ("pytest", "tests")])
def test_one_that_fails_does_not_keep_the_others_from_running(checkout, failing, name):
    (checkout.parent / "failing").write_text(failing)
    process, calls = call(checkout, "test.sh")
    assert process.returncode == 1 and len(calls) == 4
    assert process.stderr.endswith(f"jaxseg: failed: {name}\n")


def test_the_tests_take_the_environment_that_is_there(checkout):
    (checkout / ".venv" / "accelerator.txt").write_text("tpu\n")
    for name in ("requirements.txt", "requirements-test.txt"):
        (checkout / ".venv" / f"installed-{name}").write_text("accelerator tpu\na==1\n")
    process, calls = call(checkout, "test.sh")
    assert process.returncode == 0 and len(calls) == 4 and "installs" not in process.stderr

import importlib.metadata
import os
import pathlib
import shutil
import sys

import jax
import pytest

from jaxseg.tools import doctor


def test_versions_are_compared_with_the_pins(tmp_path):
    installed = importlib.metadata.version("numpy")
    file = tmp_path / "requirements.txt"
    file.write_text(f"# why\nnumpy=={installed} # arrays\noptax==0.0.1\nno-such-package-of-ours==1.2 # x\n")
    finding = doctor.check_versions(file)
    assert finding.lines[1] == f"numpy {installed}"
    assert finding.lines[2] == f"optax {importlib.metadata.version('optax')} (tested with 0.0.1)"
    assert finding.lines[3] == "no-such-package-of-ours missing"
    assert [fault for fault in finding.faults if "Python" not in fault] == [
        f"no-such-package-of-ours is not installed. Run: {sys.executable} -m pip install no-such-package-of-ours==1.2"
    ]


def test_every_pin_of_the_repository_is_looked_at():
    names = {name for name, _ in doctor.pins(doctor.REPOSITORY / "requirements.txt")}
    assert {"jax", "flax", "grain", "Jinja2"} <= names
    assert doctor.pins(doctor.REPOSITORY / "nothing.txt") == []


def test_an_untested_python_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    finding = doctor.check_versions(tmp_path / "none")
    assert finding.faults == (
        f"Python {doctor.platform.python_version()} is not tested with jaxseg. Use 3.11 or 3.12.",
    )


def test_devices_are_counted(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    finding = doctor.check_devices()
    assert finding.lines == (f"4 x cpu (cpu), {os.cpu_count()} CPU cores",) and not finding.faults


def test_a_gpu_that_jax_does_not_use_is_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (fault,) = doctor.check_devices().faults
    assert "--accelerator=cuda" in fault


def test_a_backend_that_does_not_start_is_a_sentence(monkeypatch):
    def fail():
        raise RuntimeError("no TPU here")

    monkeypatch.setattr(jax, "devices", fail)
    (fault,) = doctor.check_devices().faults
    assert fault.startswith("JAX finds no usable device: no TPU here.")


def test_the_workers_work():
    finding = doctor.check_workers()
    assert finding.faults == () and finding.lines == ("2 Grain worker processes work",)


def test_folders_tell_what_is_free(tmp_path, monkeypatch):
    finding = doctor.check_folders([("runs", tmp_path / "a" / "b")])
    assert finding.lines[0].startswith(f"runs: {tmp_path}/a/b (not made yet), ")
    usage = shutil.disk_usage(tmp_path)._replace(free=2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (fault,) = doctor.check_folders([("runs", tmp_path)]).faults
    assert fault == f"runs: only 1.0 GiB are free on the disk of {tmp_path}. Make room there."


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    (fault,) = doctor.check_folders([("prepared data", tmp_path)]).faults
    assert fault.startswith(f"prepared data: {tmp_path} cannot be written (Permission denied).")


def test_the_folders_are_those_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("JAXSEG_DATA_DIR", str(tmp_path / "d"))
    folders = dict(doctor.default_folders())
    assert folders["compiled programs"] == tmp_path / "c" / "xla"
    assert folders["prepared data"] == tmp_path / "d"
    assert folders["runs"] == pathlib.Path.cwd() / "runs"


def absent():
    raise ImportError("No module named 'grain'")


@pytest.mark.parametrize(
    ("checks", "status", "ending"),
    [
        ([lambda: doctor.Finding("A", ("fine",))], 0, "A\n  fine\n\nNothing is wrong.\n"),
        ([lambda: doctor.Finding("A", (), ("x. Do y.",))], 1, "A\n  WRONG: x. Do y.\n\n1 thing is wrong.\n"),
        ([absent] * 2, 1, "Absent\n  WRONG: Cannot be checked: No module named 'grain'.\n\n2 things are wrong.\n"),
    ],
)
def test_what_is_wrong_stands_at_the_end(capsys, checks, status, ending):
    assert doctor.main(checks) == status
    assert capsys.readouterr().out.endswith(ending)

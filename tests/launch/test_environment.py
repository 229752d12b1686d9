"""The shell functions of launch/environment.sh, with stand-ins for Python, nvidia-smi and pip on their own PATH."""

import pathlib
import platform
import shutil
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
SYSTEM_TOOLS = ("bash", "cat", "cmp", "dirname", "grep", "mkdir", "mv", "rm", "sed", "flock")


PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
# In a thread, as XLA's buffers are: glibc gives it an arena of its own unless there is to be one.
FAULTS = """
import resource, threading
def touch():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytes([120]) * 2**28
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=touch)
thread.start()
thread.join()
"""


@pytest.fixture
def machine(tmp_path):
    """A machine with a shell and its tools, and nothing else."""
    return Machine(tmp_path)


class Machine:
    def __init__(self, folder):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        for tool in SYSTEM_TOOLS:
            found = shutil.which(tool)
            if found:
                (self.bin / tool).symlink_to(found)
        self.venv = folder / "venv dir" / ".venv"

    def command(self, name, script):
        """Puts a command on the PATH."""
        path = self.bin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{shutil.which('bash')}\n{script}\n")
        path.chmod(0o755)
        return path

    def python(self, name, *, minor=11, ensurepip=True, pip=True):
        """A stand-in for Python 3.minor that logs how it is called and makes environments of itself."""
        return self.command(
            name,
            f"""
            case "$*" in
              *"version_info"*) [[ {minor} == 11 || {minor} == 12 ]] ;;
              *"import ensurepip"*) {str(ensurepip).lower()} ;;
              "--version") echo "Python 3.{minor}.0" ;;
              "-m pip --version") {str(pip).lower()} ;;
              "-m venv"*) printf '%s\\n' "$*" >>'{self.folder}/log'
                for target in "$@"; do :; done
                mkdir -p "$target/bin" && cat "$0" >"$target/bin/python" && {sys.executable} -c \
                  'import os, sys; os.chmod(sys.argv[1], 0o755)' "$target/bin/python" ;;
              *) printf '%s\\n' "$*" >>'{self.folder}/log'
                 [[ ! -e '{self.folder}/broken' ]] ;;
            esac""",
        )

    def run(self, script, **environment):
        """Runs bash with the functions sourced."""
        variables = {"PATH": str(self.bin), "HOME": str(self.folder), "JAXSEG_VENV": str(self.venv), **environment}
        code = f'source "{REPOSITORY}/launch/environment.sh"\n{script}'
        return subprocess.run(
            [shutil.which("bash"), "-uo", "pipefail", "-c", code],
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def log(self):
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []


def test_a_shim_that_fails_is_passed_over(machine):
    machine.command("python3", "echo 'command not found' >&2; exit 127")
    machine.command("python3.12", "echo 'python3.12: version not selected' >&2; exit 127")
    machine.python("python3.11")
    answer = machine.run("find_python")
    assert answer.stdout.strip() == "python3.11", answer.stderr


def test_the_selected_python_comes_first(machine):
    machine.python("python3", minor=12)
    machine.python("python3.11")
    assert machine.run("find_python").stdout.strip() == "python3"


@pytest.mark.parametrize("minor", [10, 13])
def test_other_versions_are_passed_over(machine, minor):
    machine.python("python3", minor=minor)
    machine.python("python3.12", minor=12)
    assert machine.run("find_python").stdout.strip() == "python3.12"


def test_a_hidden_one_further_down_the_path_is_found(machine):
    machine.command("python3", "exit 127")
    second = machine.python("../other bin/python3")
    folder = second.parent.resolve()
    answer = machine.run("find_python", PATH=f"{machine.bin}:{folder}")
    assert answer.stdout.strip() == f"{folder}/python3"


def test_without_ensurepip_is_second_choice(machine):
    machine.python("python3", ensurepip=False)
    assert machine.run("find_python").stdout.strip() == "python3"
    machine.python("python3.12", minor=12)
    assert machine.run("find_python").stdout.strip() == "python3.12"


def test_no_python_says_what_to_install(machine):
    answer = machine.run("find_python")
    assert answer.returncode == 2 and answer.stdout == ""
    assert "no Python 3.11 or 3.12 found" in answer.stderr
    assert "apt-get install" in answer.stderr and "JAXSEG_PYTHON" in answer.stderr


def test_a_named_python_is_taken_or_refused(machine):
    path = machine.python("mine")
    assert machine.run("find_python", JAXSEG_PYTHON=str(path)).stdout.strip() == str(path)
    old = machine.python("old", minor=9)
    answer = machine.run("find_python", JAXSEG_PYTHON=str(old))
    assert answer.returncode == 2 and "is not a Python 3.11 or 3.12 that runs" in answer.stderr


@pytest.mark.parametrize(
    ("driver", "expected"), [("580.65.06", "cuda13"), ("570.124", "cuda12"), ("525.60", "cuda12"), ("470.57", "cpu")]
)
def test_the_driver_decides_on_the_wheels(machine, driver, expected):
    machine.command("nvidia-smi", f"echo {driver}; echo {driver}")
    assert machine.run("has_tpu() { return 1; }; resolve_accelerator auto").stdout.strip() == expected


def test_a_driver_that_does_not_answer_is_no_gpu(machine):
    machine.command("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    assert machine.run("has_tpu() { return 1; }; resolve_accelerator auto").stdout.strip() == "cpu"


def test_accelerators_by_name(machine):
    assert machine.run("resolve_accelerator cpu").stdout.strip() == "cpu"
    assert machine.run("resolve_accelerator tpu").stdout.strip() == "tpu"
    assert machine.run("resolve_accelerator cuda").stdout.strip() == "cuda12"
    assert machine.run("has_tpu() { return 0; }; resolve_accelerator auto").stdout.strip() == "tpu"
    wrong = machine.run("prepare_environment gpu x.txt")
    assert wrong.returncode == 2 and "--accelerator=gpu is not known; it takes cpu, cuda or tpu." in wrong.stderr


def pinned_jax():
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    return next(line.split("#")[0].strip() for line in lines if line.startswith("jax=="))


def test_the_second_call_installs_nothing(machine):
    machine.python("python3")
    requirements = machine.folder / "requirements.txt"
    requirements.write_text("a==1\n")
    prepare = f'prepare_environment cpu "{requirements}"'
    first = machine.run(prepare)
    assert first.returncode == 0, first.stderr
    assert "makes the virtual environment" in first.stderr and "the environment is ready" in first.stderr
    assert machine.log() == [
        f"-m venv {machine.venv}",
        f"-m pip install --disable-pip-version-check --quiet -r {requirements}",
    ]
    second = machine.run(prepare)
    assert second.returncode == 0 and second.stderr == "" and len(machine.log()) == 2
    requirements.write_text("a==2\n")
    assert machine.run(prepare).returncode == 0
    assert len(machine.log()) == 3 and machine.log()[2].startswith("-m pip install")


def test_one_file_more_does_not_undo_the_other(machine):
    machine.python("python3")
    both = []
    for name in ("requirements.txt", "requirements-test.txt"):
        (machine.folder / name).write_text("a==1\n")
        both.append(f'"{machine.folder / name}"')
    machine.run(f"prepare_environment cpu {both[0]}")
    machine.run(f"prepare_environment cpu {' '.join(both)}")
    calls = len(machine.log())
    assert machine.run(f"prepare_environment cpu {both[0]}").stderr == ""
    assert machine.run(f"prepare_environment cpu {' '.join(both)}").stderr == ""
    assert len(machine.log()) == calls == 3


def test_an_install_that_failed_is_done_again(machine):
    machine.python("python3")
    requirements = machine.folder / "requirements.txt"
    requirements.write_text("a==1\n")
    (machine.folder / "broken").touch()
    failed = machine.run(f'prepare_environment cpu "{requirements}"; echo went on')
    assert failed.returncode == 2 and "pip could not install" in failed.stderr and "went on" not in failed.stdout
    (machine.folder / "broken").unlink()
    assert machine.run(f'prepare_environment cpu "{requirements}"').returncode == 0
    assert [line[:7] for line in machine.log()] == ["-m venv", "-m pip ", "-m pip "]


def test_another_accelerator_makes_the_environment_anew(machine):
    machine.python("python3")
    requirements = machine.folder / "requirements.txt"
    requirements.write_text("a==1\n")
    machine.run(f'prepare_environment cpu "{requirements}"')
    (machine.venv / "left over").touch()
    assert machine.run(f'prepare_environment cuda "{requirements}"').returncode == 0
    assert not (machine.venv / "left over").exists()
    assert machine.log()[-1].endswith(f"-r {requirements} {pinned_jax().replace('jax', 'jax[cuda12]')}")


def test_an_environment_of_someone_else_is_left_alone(machine):
    machine.python("python3")
    machine.venv.mkdir(parents=True)
    (machine.venv / "theirs").touch()
    answer = machine.run('prepare_environment cpu "$REPOSITORY/requirements.txt"')
    assert answer.returncode == 2 and "was not made by this script" in answer.stderr
    assert (machine.venv / "theirs").exists()


def test_an_environment_without_pip_gets_the_systems(machine):
    machine.python("python3", ensurepip=False)
    requirements = machine.folder / "requirements.txt"
    requirements.write_text("a==1\n")
    assert machine.run(f'prepare_environment cpu "{requirements}"').returncode == 0
    assert machine.log()[:2] == [
        f"-m venv --without-pip {machine.venv}",
        f"-m pip --python {machine.venv}/bin/python install --quiet pip",
    ]


def test_without_ensurepip_and_pip_it_says_so(machine):
    machine.python("python3", ensurepip=False, pip=False)
    answer = machine.run('prepare_environment cpu "$REPOSITORY/requirements.txt"')
    assert answer.returncode == 2
    assert "neither ensurepip nor pip" in answer.stderr and "python3-venv" in answer.stderr


def test_the_user_s_tunables_stay(machine):
    ask = 'keep_large_buffers; printf "%s" "$GLIBC_TUNABLES"'
    assert machine.run(ask, GLIBC_TUNABLES="glibc.malloc.check=1").stdout == "glibc.malloc.check=1"


def gives_huge_pages():
    """Whether this is a Linux that gives huge pages to those who ask, with a glibc (2.35 or later) that can."""
    name, version = platform.libc_ver()
    new = name == "glibc" and tuple(int(n) for n in version.split(".")[:2]) >= (2, 35)
    return new and PAGES.is_file() and "[madvise]" in PAGES.read_text()


@pytest.mark.skipif(not gives_huge_pages(), reason="huge pages are not to be had by asking")
def test_a_large_buffer_lies_in_few_pages_and_is_kept(machine):
    program = f"'{sys.executable}' -c '{FAULTS}'"
    plain, (first, second) = (
        [int(n) for n in machine.run(ask + program).stdout.split()] for ask in ("", "keep_large_buffers; ")
    )
    assert min(plain) >= 2**28 // 4096 > 20 * first, (plain, first)
    assert second < 2**28 // 2**21 // 4, second  # fewer than its huge pages: the memory of the first

"""Every test runs on four CPU devices, with strict promotion; the compilation cache makes a second run quick."""

import gc
import os
import pathlib
from collections.abc import Iterator

import jax
import pytest

# Nearly all of the tests' time is the compiler's, and their arrays are small: little optimisation halves it. Whole runs
# in processes of their own (`environment()` in tests/e2e) have XLA's defaults, and so has everything after
# `XLA_FLAGS= launch/test.sh`.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
DEFAULT = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if jax.__version_info__ < (0, 11):  # XLA ends the process on a flag that it does not know
    QUICK["xla_cpu_use_fusion_emitters"] = False
    DEFAULT["xla_cpu_use_fusion_emitters"] = True
os.environ.setdefault("XLA_FLAGS", " ".join(f"--{name}={value}".lower() for name, value in QUICK.items()))

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("JAXSEG_CACHE", REPOSITORY / ".cache"))
DATA = pathlib.Path(os.environ.get("JAXSEG_DATA", REPOSITORY.parent / "shared" / "data"))

gc.set_threshold(200_000, 20, 100)  # searching a traced network for cycles took a sixth of the time
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(CACHE / "xla-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs the real images where they are not there."""
    for item in items:
        if item.get_closest_marker("data") and not DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no real images at {DATA}"))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real images; mark the test with `data`."""
    return DATA


def as_if(platform: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Until the test ends every choice by platform is that one's; what was traced before is forgotten."""

    def chosen(*arguments, default, **platforms):
        return platforms.get(platform, default)(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def cuda(monkeypatch):
    """A GPU's choices."""
    yield from as_if("cuda", monkeypatch)


@pytest.fixture
def tpu(monkeypatch):
    """A TPU's choices."""
    yield from as_if("tpu", monkeypatch)

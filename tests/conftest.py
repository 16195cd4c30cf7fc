"""What every test runs under."""

import os
from collections.abc import Iterator

import hypothesis
import jax
import pytest

# Compilation makes a first example slow, and the same examples every time let two runs
# be compared.
hypothesis.settings.register_profile("zfnet_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("zfnet_jax")


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory) -> Iterator[None]:
    """Keep compiled programs for other workers and child processes of this run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    options = {
        "jax_compilation_cache_dir": str(folder / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": float(
            os.environ.get("MINT", 0.0)
        ),
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": bool(int(os.environ.get("NOOPT", "1"))),
    }
    if os.environ.get("NOCACHE"):
        options = {
            "jax_disable_most_optimizations": bool(int(os.environ.get("NOOPT", "1")))
        }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in options.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield


@pytest.fixture
def quick_compilation():
    pass


@pytest.fixture(scope="module")
def compiled_once():
    pass

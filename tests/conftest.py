"""What every test runs under."""

from collections.abc import Iterator

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# Compilation makes a first example slow, and the same examples every time let two runs
# be compared.
hypothesis.settings.register_profile("zfnet_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("zfnet_jax")


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory) -> Iterator[None]:
    """For runs that compile more than they compute, and the same again: do that fast,
    and only once for the same program, in other processes too.
    """
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in options}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in options.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        compilation_cache.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    """For networks so small that compilation takes most of the time."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)

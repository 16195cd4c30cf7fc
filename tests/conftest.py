"""Settings and fixtures of all tests."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import jax
import pytest

# Compilation makes a first example slow, and the same examples every time let two runs
# be compared.
hypothesis.settings.register_profile("zfnet_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("zfnet_jax")

FAST = "jax_disable_most_optimizations"
# XLA reads it once, with the first computation. Without the newer code generator of
# its CPU backend, programs compile in less than half the time. A release that does not
# know the flag would abort.
if jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] = " ".join(
        [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false"]
    ).strip()


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory) -> Iterator[None]:
    """Compile fast, and only once for all workers and child processes of a run.

    The tests compile more than they compute.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    options = {
        "jax_compilation_cache_dir": str(folder / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        FAST: True,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in options.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield


@pytest.fixture
def compiled_well(compiled_once) -> Iterator[None]:
    """For forms of computations that are there for speed: compile as users do."""
    jax.config.update(FAST, False)
    yield
    jax.config.update(FAST, True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    from tests.browser import start

    with start() as browser:
        yield browser


@pytest.fixture
def visit(browser, folder) -> Callable[[str], None]:
    """Open a page of a folder as new, at the size of a desktop."""
    from tests.browser import prefer, resize

    resize(browser, 1280)
    prefer(browser, "light")

    def open_page(page: str) -> None:
        browser.get("about:blank")
        browser.get(f"{folder.as_uri()}/{page}")

    return open_page

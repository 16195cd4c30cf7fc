"""Importing the package does nothing but define names."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import zfnet_jax as zf

# What numpy and jax themselves do on import is theirs, so they come first. A platform
# that does not exist makes any start of a backend fail.
SCRIPT = """
import logging, os, sys, warnings
import jax, numpy

def state():
    names = logging.root.manager.loggerDict
    return {
        "environment": dict(os.environ),
        "warning filters": list(warnings.filters),
        "handlers": [
            (name, handler)
            for name in (None, *names)
            for handler in logging.getLogger(name).handlers
            if not isinstance(handler, logging.NullHandler)
        ],
        "level": logging.root.level,
        "jax config": dict(jax.config.values),
        "working directory": os.getcwd(),
    }

events = []

def audit(event, arguments):
    if event.startswith("socket.") or event == "subprocess.Popen":
        events.append((event, arguments))
    elif event == "open":
        _, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            events.append((event, arguments))

before = state()
sys.addaudithook(audit)
{statement}
after = state()
for name, value in before.items():
    if after[name] != value:
        print("changed:", name, value, after[name])
for event in events:
    print("did:", event)
for name in (
    "array_record", "captum", "grain", "keras", "matplotlib", "orbax", "tensorflow",
    "tensorflow_datasets", "torch",
):
    if name in sys.modules:
        print("imported:", name)
"""


def side_effects(statement: str) -> str:
    """All that a fresh interpreter says, and that the script finds, of an import."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "nowhere",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT.replace("{statement}", statement)],
        capture_output=True,
        env=environment,
        text=True,
    )
    return answer.stdout + answer.stderr


def test_importing_the_package_does_nothing_else():
    assert side_effects("import zfnet_jax") == ""


def test_no_name_hides_a_module():
    modules = list(pkgutil.walk_packages(zf.__path__, "zfnet_jax."))
    assert len(modules) > 30
    for module in modules:
        parent, _, name = module.name.rpartition(".")
        expected = importlib.import_module(module.name)
        assert getattr(importlib.import_module(parent), name) is expected

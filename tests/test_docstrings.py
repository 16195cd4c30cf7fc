"""Every public name has an example, and every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest

import zfnet_jax as zf

MODULES = [module.name for module in pkgutil.walk_packages(zf.__path__, "zfnet_jax.")]
PUBLIC = {name: getattr(zf, name) for name in zf.__all__ if callable(getattr(zf, name))}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert not results.failed


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_an_example(name):
    value = PUBLIC[name]
    assert ">>>" in (value.__doc__ or ""), f"zf.{name} has no example"


def test_the_public_names_are_about_thirty():
    assert 25 <= len(zf.__all__) <= 36
    assert zf.__all__ == sorted(
        zf.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name)
    )

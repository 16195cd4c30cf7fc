"""Names in docstrings: code in single backticks becomes a link where it can."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.roles import XRefRole
from sphinx.util.inspect import signature, stringify_signature

import zfnet_jax as zf


class Name(XRefRole):
    """Link to a Python object if there is one of that name."""

    def process_link(
        self,
        env: BuildEnvironment,
        refnode: nodes.Element,
        has_explicit_title: bool,
        title: str,
        target: str,
    ) -> tuple[str, str]:
        """Look up a name as the docstring's module and class see it."""
        refnode["refdomain"], refnode["reftype"] = "py", "obj"
        refnode["py:module"] = env.ref_context.get("py:module")
        refnode["py:class"] = env.ref_context.get("py:class")
        if target[:1].isupper() or "." in target:
            refnode["refspecific"] = True
        return title, re.sub(r"^zf\.", "zfnet_jax.", target)


def qualify(text: str) -> str:
    """Give the arrays of a signature the names under which they are documented."""
    jax = r"~?(jax\.)?jaxlib\._jax\.Array|(?<![\w.])Array\b"
    text = re.sub(jax, "~jax.Array", text)
    return re.sub(r"(?<![\w.])(np\.)?ndarray\b", "~numpy.ndarray", text)


def write_signature(
    app: Sphinx, what: str, name: str, value: Any, options: Any, text: str, result: str
) -> tuple[str | None, str | None]:
    """Write the signature of what users call, and none for the classes of results."""
    if what == "class":
        if name.removeprefix("zfnet_jax.") not in zf.__all__:
            return "", None
        if text == "(*args: Any, **kwargs: Any)":  # that of the metaclass of nnx
            of_init = signature(value.__init__, bound_method=True)
            text = stringify_signature(of_init, unqualified_typehints=True)
    return text and qualify(text), result and qualify(result)


def shorten_types(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Write the types of attributes as those of a signature."""
    for place, line in enumerate(lines):
        if line.startswith(":vartype"):
            text = line.replace("jaxtyping.", "").replace("*", r"\*")
            lines[place] = qualify(text)


def rename(app: Sphinx, document: nodes.document) -> None:
    """Write `zf.project` for `zfnet_jax.project`, and head attributes as such."""
    for prefix in document.findall(addnodes.desc_addname):
        if prefix.astext() == "zfnet_jax.":
            prefix.children = [nodes.Text("zf.")]
    for label in document.findall(nodes.field_name):
        if label.astext() == "Variables":
            label.children = [nodes.Text("Attributes")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the role and the hooks."""
    app.add_role("name", Name())
    app.connect("autodoc-process-signature", write_signature)
    app.connect("autodoc-process-docstring", shorten_types, priority=900)
    app.connect("doctree-read", rename)
    return {"parallel_read_safe": True}

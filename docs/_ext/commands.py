"""The directive `command`: the help of a command of `python -m experiments`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import re
from collections import Counter
from typing import NamedTuple
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from experiments import harness
from experiments.__main__ import list_commands

# Options of this many commands are listed once.
MANY = 4


class Option(NamedTuple):
    """An option as a command's help has it."""

    usage: str
    text: str


class Help(NamedTuple):
    """The help of a command: paragraphs and options."""

    paragraphs: list[str]
    options: list[Option]


@functools.cache
def read_help(name: str) -> Help:
    """Run a command with `--help` in this process, and read what it prints."""
    command = getattr(importlib.import_module(f"experiments.{name}"), name)
    wide = mock.patch.dict(os.environ, COLUMNS="1000")
    printed = io.StringIO()
    with wide, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        harness.parse(command, ["--help"])
    text = printed.getvalue().replace(" (default: False)", "").rstrip()
    _usage, *paragraphs, box = re.split(r"\n{2,}", text)
    options: list[Option] = []
    for line in box.splitlines()[1:]:
        words = line.strip(" │")
        if re.match(r"--?\w", words):
            usage, *texts = re.split(r" {2,}", words, maxsplit=1)
            options.append(Option(usage, "".join(texts)))
        elif re.search(r"\w", words):
            usage, start = options.pop()
            options.append(Option(usage, f"{start} {words}".strip()))
    return Help(paragraphs, options)


def write_paragraph(text: str) -> nodes.Element:
    """Make a node of a paragraph; indented ones are commands, and options are code."""
    if text.startswith(" "):
        lines = [line.strip() for line in text.splitlines()]
        return nodes.literal_block("", "\n".join(lines), language="sh")
    paragraph = nodes.paragraph()
    for part in re.split(r"(`[^`]+`|(?<![\w-])--\w[\w-]*)", text):
        is_code = part.startswith(("`", "--"))
        paragraph += nodes.literal("", part.strip("`")) if is_code else nodes.Text(part)
    return paragraph


def write_options(options: list[Option]) -> nodes.Element:
    """Make a list of options with their texts."""
    items = nodes.definition_list(classes=["options"])
    for usage, text in options:
        term = nodes.term("", "", nodes.literal("", usage))
        items += nodes.definition_list_item(
            "", term, nodes.definition("", write_paragraph(text))
        )
    return items


def list_shared() -> list[Option]:
    """List the options that many commands have, in the order of their help."""
    count = Counter(x for name in list_commands() for x in read_help(name).options)
    return [option for option in count if count[option] >= MANY]


class Command(SphinxDirective):
    """The help of a command, which only names the shared options."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Read the help."""
        paragraphs, options = read_help(self.arguments[0])
        shared = list_shared()
        names = [f"`{x.usage.split()[0].rstrip(',')}`" for x in options if x in shared]
        return [
            *map(write_paragraph, paragraphs),
            write_options([x for x in options if x not in shared]),
            write_paragraph(f"Shared options: {', '.join(names)}."),
        ]


class SharedOptions(SphinxDirective):
    """The options that many commands have."""

    def run(self) -> list[nodes.Node]:
        """Read the help of all commands."""
        return [write_options(list_shared())]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("command", Command)
    app.add_directive("shared-options", SharedOptions)
    return {"parallel_read_safe": True}

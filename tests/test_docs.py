"""The documentation builds without a warning, its links lead somewhere, and it fits.

The variable DOCS_HTML names a build to look at, as one whose notebooks were executed;
otherwise the pages are built without executing them. To list the external links:

    python -m tests.test_docs
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import zfnet_jax as zf
from experiments.__main__ import list_commands
from tests.browser import forget, needs_browser, resize

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
# Addresses of the documentation's own pictures that cannot be shown.
MISSING = """
const own = [...document.images].filter(x => x.src.startsWith("file:"));
own.forEach(x => x.loading = "eager");
return Promise.allSettled(own.map(x => x.decode()))
  .then(() => own.filter(x => !x.naturalWidth).map(x => x.src));
"""


class Page(HTMLParser):
    """The anchors and the links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            if name in ("href", "src") and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """Folder of the built pages."""
    if folder := os.environ.get("DOCS_HTML"):
        return Path(folder).resolve()
    for package in ("myst_nb", "pydata_sphinx_theme", "sphinx_copybutton"):
        pytest.importorskip(package, reason="needs the docs extra")
    folder = tmp_path_factory.mktemp("docs").resolve()
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
    command += ["-D", "nb_execution_mode=off", str(DOCS), str(folder)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not build.returncode, build.stderr
    return folder


@pytest.fixture(scope="module")
def pages(html) -> dict[Path, Page]:
    paths = (x for x in html.rglob("*.html") if "_static" not in x.parts)
    return {path: Page(path) for path in paths}


def list_links(markdown: Path) -> Iterator[str]:
    """Links and pictures of a Markdown file, without those in blocks of code."""
    text = re.sub(r"```.*?```", "", markdown.read_text(encoding="utf-8"), flags=re.S)
    yield from re.findall(r"\]\(([^()\s]+)(?: [^)]*)?\)", text)
    yield from re.findall(r'(?:src|href)="([^"]+)"', text)


def list_external() -> list[str]:
    return sorted(
        {
            link
            for path in SOURCES
            for link in list_links(path)
            if urlsplit(link).scheme in ("http", "https")
        }
    )


def list_anchors(markdown: Path) -> set[str]:
    """Anchors of headings, as GitHub makes them; an included file's stand for it."""
    text = markdown.read_text(encoding="utf-8")
    if included := re.match(r"```{include} (\S+)", text):
        return list_anchors(markdown.parent / included[1])
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in headings}


@pytest.mark.parametrize("path", SOURCES, ids=lambda x: str(x.relative_to(ROOT)))
def test_the_sources_link_to_what_there_is(path):
    """Also where GitHub shows them."""
    for link in list_links(path):
        address = urlsplit(link)
        if address.scheme:
            assert address.scheme in ("https", "mailto"), link
            continue
        target = path.parent / unquote(address.path) if address.path else path
        assert target.exists(), link
        if address.fragment and target.suffix == ".md":
            assert address.fragment in list_anchors(target), link


def test_the_pages_link_to_what_there_is(html, pages):
    for path, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme:
                continue
            target = path.parent / unquote(address.path) if address.path else path
            assert target.resolve().exists(), (path.relative_to(html), link)
            if address.fragment and target.suffix == ".html":
                anchors = pages[target.resolve()].ids
                assert unquote(address.fragment) in anchors, (path, link)


def test_no_option_has_its_dashes_replaced(html, pages):
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"\u2013[a-z][\w-]*", text) == [], path.relative_to(html)


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_pages_fit_a_screen(html, pages, browser, width):
    resize(browser, width)
    forget(browser)
    for path in pages:
        browser.get(path.as_uri())
        name = path.relative_to(html)
        across = browser.execute_script("return document.documentElement.scrollWidth")
        assert across <= width, f"{name} is {across} pixels wide"
        assert browser.execute_script(MISSING) == [], name
        errors = [x for x in browser.get_log("browser") if x["level"] == "SEVERE"]
        # Badges of other sites may be out of reach.
        own = [x["message"] for x in errors if not x["message"].startswith("https:")]
        assert not own, name


def test_every_command_and_public_name_has_its_entry():
    commands = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    listed = re.findall(r"^```\{command\} (\w+)$", commands, re.M)
    assert sorted(listed) == sorted(list_commands())
    api = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    assert {*zf.__all__} <= {*re.findall(r"^\.\. auto\w+:: (\w+)$", api, re.M)}


def test_the_help_of_a_command_is_read_as_it_is_printed():
    pytest.importorskip("sphinx", reason="needs the docs extra")
    from docs._ext.commands import read_help

    paragraphs, options = read_help("invariance")
    assert paragraphs[1] == "    python -m experiments.invariance --transform rotate"
    texts = dict(options)
    assert texts["--limit INT"] == "Images at most. (default: 200)"
    assert texts["--amounts [FLOAT [FLOAT ...]]"].endswith("0 to 360 degrees.")


if __name__ == "__main__":
    print(*list_external(), sep="\n")

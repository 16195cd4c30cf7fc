"""What surrounds the package: citation, workflows, issue forms, guide."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import zfnet_jax as zf
from experiments.harness import main
from tests.networks import save
from zfnet_jax.data import make_shapes

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_the_citation_is_of_this_version():
    citation = read("CITATION.cff")
    assert citation["version"] == zf.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    (paper,) = citation["references"]
    assert [x["family-names"] for x in paper["authors"]] == ["Zeiler", "Fergus"]


def test_the_checks_run_on_the_versions_of_python_that_the_package_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    jobs = read(".github/workflows/checks.yml")["jobs"]
    steps = jobs["checks"]["steps"]
    (first,) = (x["with"]["python-version"] for x in steps if "python" in str(x))
    tested = [first, *jobs["versions"]["strategy"]["matrix"]["python"]]
    assert tested == named
    assert project["requires-python"] == f">={first}"


@pytest.mark.parametrize(
    "file", sorted(GITHUB.glob("workflows/*.yml")), ids=lambda x: x.stem
)
def test_workflows_may_do_only_what_they_need(file):
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        if called := job.get("uses"):
            assert "workflow_call" in read(called)[True]  # YAML 1.1 reads "on" as true
            continue
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            action, script = step.get("uses", ""), step.get("run", "")
            assert re.fullmatch(r"([\w/-]+@(release/)?v\d+)?", action)
            if action.startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            # An expression would become part of the script; variables do not.
            assert "${{" not in script
            subprocess.run(["bash", "-n"], input=script, text=True, check=True)
            for local in re.findall(r"\.ci/\w+", script):
                assert (ROOT / local).stat().st_mode & 0o100


def test_a_release_is_published_after_all_checks():
    jobs = read(".github/workflows/release.yml")["jobs"]
    assert jobs["checks"]["uses"] == "./.github/workflows/checks.yml"
    assert {"checks", "build"} <= {*jobs["pypi"]["needs"]}
    assert jobs["github"]["needs"] == "pypi"


@pytest.mark.parametrize("tag, code", [("v0.2.0", 0), ("v0.2", 1), ("v0.3.0", 1)])
def test_the_text_of_a_release_is_its_section_of_the_changelog(tag, code, tmp_path):
    steps = read(".github/workflows/release.yml")["jobs"]["build"]["steps"]
    (script,) = (x["run"] for x in steps if "changelog" in x.get("name", ""))
    section = "\n### Added\n\n- A thing.\n\n"
    text = "# Changelog\n\n## [Unreleased]\n\n- Not yet.\n\n## [0.2.0] - 2027-01-31\n"
    text += f"{section}## [0.1.0] - 2026-12-01\n\n- The first thing.\n\n## [0.3.0]\n\n"
    (tmp_path / "CHANGELOG.md").write_text(text)
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    environment = {"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, check=False)
    assert answer.returncode == code
    assert code or (tmp_path / "notes.md").read_text() == section


@pytest.mark.parametrize(
    "file", sorted(GITHUB.glob("ISSUE_TEMPLATE/[!c]*.yml")), ids=lambda x: x.stem
)
def test_issue_forms_are_forms(file):
    form = yaml.safe_load(file.read_text())
    assert form["name"] and form["description"] and form["body"]
    names = [x["id"] for x in form["body"]]
    assert len(set(names)) == len(names)
    assert all(x["attributes"]["label"] for x in form["body"])
    assert any(x.get("validations", {}).get("required") for x in form["body"])


def test_links_of_the_guide_lead_somewhere():
    for page in ("CONTRIBUTING.md", "CODE_OF_CONDUCT.md"):
        for link in re.findall(r"\]\((?!https:)([^)]+)\)", (ROOT / page).read_text()):
            assert (ROOT / link).exists(), f"{page}: {link}"


def test_the_example_of_the_guide_is_an_experiment(tmp_path, monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    ((name, source),) = re.findall(
        r"`experiments/(\w+)\.py`:\n\n```python\n(.*?)```", text, re.DOTALL
    )
    assert len(source.splitlines()) <= 20
    path = tmp_path / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    (tmp_path / "photographs").mkdir()
    for index, pixels in enumerate(make_shapes(3).images):
        Image.fromarray(pixels).save(tmp_path / "photographs" / f"{index}.png")
    save(tmp_path / "weights.safetensors", 0)
    monkeypatch.chdir(tmp_path)
    argv = ["--weights", "weights.safetensors", "--image", "photographs"]
    assert main(getattr(module, name), [*argv, "--limit", "2"]) == 0
    metrics = json.loads(Path("results", name, "metrics.json").read_text())
    net = zf.load("weights.safetensors")
    activations = net.activations(net.load_images("photographs")[np.arange(2)])
    zeros = {layer: (values == 0).mean() for layer, values in activations.items()}
    assert metrics == pytest.approx(zeros)
    assert 0 < metrics["conv1"] < 1

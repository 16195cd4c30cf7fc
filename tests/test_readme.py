"""The README's examples run."""

import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


def test_the_example_of_a_model_of_one_s_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = (block for block in blocks() if "class Net(nnx.Module)" in block)
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, str(README), "exec"), namespace)
    projections = namespace["projections"]
    assert projections.pixels.shape == (18, 9, 9, 3)
    assert projections.units.tolist() == [3] * 9 + [17] * 9
    assert image.imread("projections.png").std() > 0


@pytest.mark.parametrize("block", blocks(), ids=range(len(blocks())))
def test_every_example_names_what_there_is(block):
    import zfnet_jax as zf

    for name in re.findall(r"\bzf\.(\w+)", block):
        assert hasattr(zf, name), f"zf.{name}"

"""Features of any pictures, and the pictures nearest to one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from mls.data.decode import prove
from mls.data.eval_view import normalise, square
from mls.pipeline.artifact import open_artifact
from mls.pipeline.plan import plan_file
from mls.probe.embed import read
from mls.probe.features import load_pretrained
from tests.conftest import small
from tests.data.test_unlabelled import draw

Run = Callable[..., int]


@pytest.fixture
def birds(in_tmp: Path, run_mls: Run) -> Path:
    """Twelve pictures, a cut one among them; a backbone of random weights."""
    YAML().dump(small(), in_tmp / "params.yaml")
    assert run_mls("pretrain", "random") == 0
    root = in_tmp / "birds"
    for n in range(11):
        draw(root / f"{n % 2}" / f"{n}.png", n)
    (root / "0" / "cut.png").write_bytes((root / "0" / "0.png").read_bytes()[:-200])
    return root


def test_each_picture_gets_the_backbones_feature(birds: Path, run_mls: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_mls("embed", "random", str(birds), "-o", "found.parquet", "--size", "32") == 0
    said = capsys.readouterr()
    assert "found.parquet: features of 11 pictures" in said.out and "left out: 0/cut.png does not decode" in said.err
    found = read(Path("found.parquet"))
    assert found.files == [f"{n % 2}/{n}.png" for n in (0, 10, 2, 4, 6, 8, 1, 3, 5, 7, 9)]
    (job,) = plan_file(Path("params.yaml")).find("pretrain", "random")
    backbone = load_pretrained(open_artifact(job.path)).eval()
    for name, feature_D in zip(found.files, found.features_ND, strict=True):
        image_CHW = square(prove((birds / name).read_bytes(), name), 32)
        with torch.inference_mode():
            expected_D = backbone(normalise(image_CHW[None], torch.device("cpu")))[0].numpy()
        np.testing.assert_allclose(feature_D, expected_D, rtol=1e-4, atol=1e-6)


def test_the_nearest_pictures_are_shown_on_a_page(
    birds: Path, run_mls: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(birds / "1" / "3.png", birds / "0" / "twin of 3 <b>.png")
    assert run_mls("embed", "random", str(birds), "--size", "32") == 0
    capsys.readouterr()
    assert run_mls("similar", str(birds / "1" / "3.png"), "-n", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1.000  0/twin of 3 <b>.png" and len(lines) == 5 and lines[-1] == "drawn/similar.html"
    assert "1/3.png" not in "".join(lines), "it is not its own neighbour"
    cosines = [float(line.split()[0]) for line in lines[:4]]
    assert cosines == sorted(cosines, reverse=True)
    page = Path("drawn/similar.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 5 and "twin of 3 &lt;b&gt;.png" in page
    assert not re.search(r"(src|href)=.(?!data:)", page), "it needs no other file"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("similar", "birds/0/cut.png"), "cut.png does not decode"),
        (("similar", "birds/none.png"), "none.png is not a file"),
        (("similar", "birds/0/0.png", "params.yaml"), "not a file that `mls embed` wrote"),
        (("similar", "birds/0/0.png", "nowhere.parquet"), "not a file that `mls embed` wrote"),
        (("embed", "random", "work"), "holds 0 images"),
    ],
)
def test_what_can_not_work_is_said(
    birds: Path, run_mls: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run_mls("embed", "random", str(birds), "--size", "32") == 0
    assert run_mls(*arguments) == 1
    assert message in capsys.readouterr().err


def test_a_backbone_that_is_gone_is_named(birds: Path, run_mls: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_mls("embed", "random", str(birds), "--size", "32") == 0
    for folder in ("artifacts", ".store"):
        shutil.rmtree(folder)
    assert run_mls("similar", str(birds / "0" / "0.png")) == 1
    assert re.search(r"the backbone of these features, pretrain \w+, is neither in", capsys.readouterr().err)

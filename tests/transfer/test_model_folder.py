"""A backbone as a folder: timm loads it in a fresh process with equal features; its card says what it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from mls.config.experiment import Backbone
from mls.models.backbone import load_backbone
from mls.pipeline.plan import plan_file
from tests.conftest import SMALL, small

LOADED = """
import sys, timm, torch
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True, num_classes=0).eval()
with torch.inference_mode():
    torch.save({"features": model(torch.load("image.pt")), "config": dict(model.pretrained_cfg)}, "features.pt")
"""


@pytest.fixture
def finished(in_tmp: Path, run_mls: Callable[..., int]) -> Path:
    """A run whose network timm has, and its probe; params.yaml is the experiment."""
    network = {"backbone": {"name": "resnet18"}, "epochs": 1, "augment": {"crop": 32}}
    YAML().dump(small(pretrain={**SMALL["pretrain"], **network}), in_tmp / "params.yaml")
    for command in (("data", "scenes"), ("pretrain", "mls"), ("features", "linear/mls"), ("probe", "linear/mls")):
        assert run_mls(*command) == 0, command
    return in_tmp


def test_timm_loads_it_in_a_fresh_process_with_equal_features(finished: Path, run_mls: Callable[..., int]) -> None:
    assert run_mls("export", "mls", "--format", "timm", "-o", "mine-0.5/") == 0
    Path("mine-0.5").rename("mine")
    assert sorted(file.name for file in Path("mine").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    image_BCHW = torch.randn(2, 3, 64, 64)
    torch.save(image_BCHW, "image.pt")
    done = subprocess.run([sys.executable, "-c", LOADED, "mine"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = torch.load("features.pt", weights_only=True)
    (job,) = plan_file(Path("params.yaml")).find("pretrain", "mls")
    own = load_backbone(Backbone(name="resnet18"), job.path / "backbone.safetensors").eval()
    with torch.inference_mode():
        torch.testing.assert_close(found["features"], own(image_BCHW), rtol=1e-4, atol=1e-5)
    assert tuple(found["config"]["mean"]) == (0.485, 0.456, 0.406) and list(found["config"]["input_size"]) == [
        3,
        32,
        32,
    ]


def test_the_card_names_data_params_scores_and_licence(finished: Path, run_mls: Callable[..., int]) -> None:
    assert run_mls("export", "mls", "--format", "timm", "-o", "mine") == 0
    text = Path("mine/README.md").read_text()
    plan = plan_file(Path("params.yaml"))
    (job,), (probe,) = plan.find("pretrain", "mls"), plan.find("probe", "linear/mls")
    metrics = json.loads((probe.path / "metrics.json").read_text())
    low, high = metrics["interval"]["mAP"]
    assert job.id in text and plan.stage("data")[0].id in text and "generated scenes" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| linear"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "linear",
        "mAP",
        f"{metrics['mAP']:.1f}",
        f"[{low:.1f}, {high:.1f}]",
    ]
    assert "detect" not in text, "it is not finished"
    assert '"queue_size": 20' in text and "@inproceedings{zhu2023mls" in text


def test_nothing_is_overwritten_and_nothing_half_written(
    finished: Path, run_mls: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine").mkdir()
    assert run_mls("export", "mls", "--format", "timm", "-o", "mine") == 1
    assert "mine is there already" in capsys.readouterr().err and not list(Path("mine").iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mls.transfer.model_folder.save_file", full)
    assert run_mls("export", "mls", "--format", "timm", "-o", "other") == 1
    assert "is full" in capsys.readouterr().err
    assert not [path for path in Path().iterdir() if "other" in path.name]

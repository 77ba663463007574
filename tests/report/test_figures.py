"""Figures are there when their data are, show something, and never show photos."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mls.pipeline.artifact import VOLATILE
from mls.report.class_figures import draw_per_class, per_class_ap
from mls.report.curves import draw_losses, short, thin
from mls.report.figures import draw_figures, file_names, run_order
from mls.report.style import PALETTE, plain_style, save
from tests.report.support import make_tables, small_plan, write_inputs, write_scenes

ROOT = Path(__file__).parents[2]
METRICS = {"mAP": 50.0, "box_AP": 10.0, "per_class": {"disc": 40.0, "star": None}}


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path).convert("RGB"))


def shows(image: np.ndarray[Any, Any], colour: str) -> int:
    """How many pixels have a colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((image == wanted).all(axis=2).sum())


def test_all_figures_show_their_data(in_tmp: Path) -> None:
    plan = small_plan(seeds=[0, 1])
    write_inputs(plan, lambda label: METRICS)
    folder = make_tables(plan) / "figures"
    scenes = f"scenes-{plan.stage('data')[0].id}"
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"{name}.{end}"
        for name in ("curves", "per_class-linear", "detections-detect", scenes)
        for end in ("png", "pdf")
    )
    assert "mechanism" not in {p.stem for p in folder.iterdir()}, "these curves have none of its columns"
    random, mls = PALETTE[:2]  # in the order of the rows
    curves, bars = pixels(folder / "curves.png"), pixels(folder / "per_class-linear.png")
    assert shows(curves, mls) > 500 and shows(curves, random) == 0  # a random network has no curve
    assert shows(bars, mls) > 5000 and shows(bars, random) > 5000
    sheet = pixels(folder / f"{scenes}.png")
    assert shows(sheet, "#c8c8c8") > 20_000  # the scenes' grey ground
    assert shows(sheet, PALETTE[0]) > 200 and shows(sheet, PALETTE[1]) > 200  # boxes of both classes
    assert (folder / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_photos_are_never_drawn(in_tmp: Path) -> None:
    class Fake:
        path = Path("data")
        manifest = {"params": {"source": "folder"}, "files": {}}  # noqa: RUF012

    Fake.path.mkdir()
    write_scenes(Fake.path)  # could be drawn, if only the source allowed it
    assert draw_figures({"tables": {}, "runs": {}}, {"data/0123456789": Fake()}, [], {}, Path("figures")) == []  # type: ignore[dict-item]
    assert not Path("figures").exists()


def test_many_classes_get_no_bars(in_tmp: Path) -> None:
    many = {f"class {i}": 50.0 for i in range(21)}
    probes = {
        name: {"kind": "linear", "dataset": "scenes", "image_size": size} for name, size in (("a", 32), ("b", 64))
    }
    plan = small_plan(probe=probes, transfer={}, tables={"main": {"columns": ["a.mAP", "b.mAP"]}})
    write_inputs(plan, lambda label: {"mAP": 50.0, "per_class": many} if label.startswith("a/") else {"top1": 50.0})
    names = {p.stem for p in (make_tables(plan) / "figures").iterdir()}
    assert not any(name.startswith("per_class") for name in names)


class Probe:
    """An opened probe artifact with given metrics."""

    def __init__(self, kind: str, **metrics: Any) -> None:
        self.manifest = {"params": {"kind": kind}}
        self.metrics = metrics

    def read_json(self, name: str) -> dict[str, Any]:
        assert name == "metrics.json"
        return self.metrics


def test_every_kind_of_classifier_has_bars_and_retrieval_has_none() -> None:
    probes = {kind: Probe(kind, per_class={"disc": 40.0, "star": None}) for kind in ("svm", "knn", "sgd", "finetune")}
    probes["bare"] = Probe("retrieval", mAP=50.0)
    probes["own"] = Probe("retrieval", per_class={"disc": {"mAP": 40.0, "n": 3}})
    probes["val"] = Probe("linear", val=50.0, per_class={"disc": 20.0, "star": 30.0}, n_val=9)
    probes["val"].manifest["params"]["test"] = False  # type: ignore[assignment]
    row = {"label": "mls", "tasks": {task: [["p", task]] for task in probes} | {"detect": [["p", "a transfer"]]}}
    found = per_class_ap({"tables": {"main": {"rows": [row]}}}, probes)  # type: ignore[arg-type]
    assert set(found) == {*((kind, "test") for kind in ("svm", "knn", "sgd", "finetune")), ("val", "val")}
    assert found["svm", "test"]["mls"]["disc"] == 40.0 and found["svm", "test"]["mls"]["star"] is None


def test_curves_have_a_panel_per_loss_and_a_colour_per_run() -> None:
    steps = pd.DataFrame({"epoch": [1.0, 2.0, 3.0], "loss": 3.0, "info_nce": 2.0})
    both = steps.assign(multi_label=[0.7, math.nan, 0.6], entropy=1.0)
    labels = {"a0": ["a:0"], "a1": ["a:1"], "b0": ["b:0", "b[k=1]:0"]}
    figure = draw_losses({"a0": steps, "a1": steps, "b0": both}, labels, ["a", "b", "b[k=1]"])
    first, second = figure.axes
    assert [axes.get_title() for axes in (first, second)] == ["InfoNCE", "multi-label loss"]
    assert [line.get_color() for line in first.lines] == [PALETTE[0], PALETTE[0], PALETTE[1]]
    assert [len(line.get_xdata()) for line in second.lines] == [2]  # type: ignore[arg-type]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b = b[k=1]"]


def test_colours_do_not_depend_on_the_order_of_mappings() -> None:
    table = {"rows": [{"label": "mls"}, {"label": "moco"}]}
    runs = {"1": ["moco:0"], "2": ["extra:0"], "3": ["mls:0"]}
    expected = ["mls", "moco", "extra"]
    assert run_order({"tables": {"t": table}, "runs": runs}) == expected
    assert run_order({"tables": {"t": table}, "runs": dict(reversed(runs.items()))}) == expected


def test_names_of_runs_are_safe_and_stay_apart_in_file_names() -> None:
    made = file_names(["mls", "mls[topk=5]", "w[file=../a b.pth]", "a[b=1]", "a_b_1"])
    assert made["mls"] == "mls" and made["mls[topk=5]"] == "mls_topk_5"
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]+", name) for name in made.values())
    assert made["a[b=1]"] != made["a_b_1"] and len(set(made.values())) == 5


def test_differences_of_each_table_and_task_have_a_file_of_their_own(in_tmp: Path) -> None:
    """``a`` with ``b-c`` and ``a-b`` with ``c`` would both be ``a-b-c``."""
    probe = {"kind": "linear", "dataset": "scenes"}
    tasks = {"b-c": {**probe, "image_size": 32}, "c": {**probe, "image_size": 64}}
    tables = {name: {"columns": ["b-c.mAP", "c.mAP"], "baseline": "random"} for name in ("a", "a-b")}
    plan = small_plan(transfer={}, probe=tasks, tables=tables)
    write_inputs(plan, lambda label: METRICS)
    names = [path.stem for path in (make_tables(plan) / "figures").glob("per_class_difference-*.png")]
    assert len(names) == 4 and {"per_class_difference-a-c", "per_class_difference-a-b-b-c"} < set(names)
    assert sum(name.startswith("per_class_difference-a-b-c-") for name in names) == 2


def test_a_legend_names_some_of_many_equal_runs() -> None:
    assert short(["D[queue_size=1024]", "mls"]) == "mls = D[queue_size=1024]"
    assert short(["D[queue_size=1024]", "mls", "k[topk=20]", "k"]) == "mls = k (+2)"


def test_thinning_averages_neighbours() -> None:
    frame = pd.DataFrame({"epoch": np.arange(1200.0), "loss": np.arange(1200.0) * 2})
    thinned = thin(frame)
    assert len(thinned) == 400
    assert thinned["epoch"].iloc[0] == pytest.approx(1.0) and thinned["loss"].iloc[-1] == pytest.approx(2396.0)


def test_an_undefined_ap_is_a_dash_and_not_a_bar() -> None:
    figure = draw_per_class("linear", {"mls": {"disc": 40.0, "star": None}}, ["mls"])
    heights = [bar.get_height() for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert heights[0] == pytest.approx(40.0) and math.isnan(heights[1])
    assert len(figure.axes[0].texts) == 1


def test_another_process_and_matplotlibrc_give_the_same_bytes(tmp_path: Path) -> None:
    with plain_style():
        save(draw_per_class("linear", {"mls": {"disc": 40.0, "star": 50.0}}, ["mls"]), tmp_path / "here")
    (tmp_path / "matplotlibrc").write_text("font.size: 20\naxes.facecolor: red\n")
    script = (
        "from pathlib import Path\n"
        "from mls.report.class_figures import draw_per_class\n"
        "from mls.report.style import plain_style, save\n"
        "with plain_style():\n"
        "    save(draw_per_class('linear', {'mls': {'disc': 40.0, 'star': 50.0}}, ['mls']), Path('there'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    for end in ("png", "pdf"):
        assert (tmp_path / f"here.{end}").read_bytes() == (tmp_path / f"there.{end}").read_bytes()


def test_making_figures_again_gives_the_same_bytes(in_tmp: Path) -> None:
    plan = small_plan(seeds=[0, 1])
    write_inputs(plan, lambda label: {"mAP": 50.0, "box_AP": 10.0, "per_class": {"disc": 40.0, "star": 60.0}})
    path = make_tables(plan)
    first = {
        str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name not in VOLATILE
    }
    assert {f"figures/{name}.{end}" for name in ("curves", "per_class-linear") for end in ("png", "pdf")} <= set(first)
    shutil.rmtree(path)
    shutil.rmtree(".store")
    make_tables(plan)
    again = {
        str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name not in VOLATILE
    }
    assert first == again

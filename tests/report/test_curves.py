"""The curves of an experiment in one file, and the figure of what the multi-label term does."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mls.report.curves import MECHANISM, POINTS, draw_mechanism, merge
from mls.report.publish import publish_tables
from mls.report.style import plain_style
from tests.report.support import make_tables, small_plan, write_inputs

LABELS = {"a": ["mls:0"], "b": ["moco-v2:0"]}


def test_one_file_holds_all_trainings() -> None:
    curves = {
        "x": pd.read_csv(io.StringIO("step,loss\n369600,1.23457\n369620,\n")),
        "y": pd.read_csv(io.StringIO("step,knn\n20,0.3\n")),
    }
    labels = {"x": ["mls[topk=5]:1", "b:1"], "y": ["moco-v2:0"]}
    assert merge(curves, labels, ["moco-v2", "mls[topk=5]", "b"]) == (
        "run,seed,step,loss,knn\nmls[topk=5] = b,1,369600,1.23457,\nmls[topk=5] = b,1,369620,,\nmoco-v2,0,20,,0.3\n"
    )


def test_long_curves_are_thinned() -> None:
    text = merge({"x": pd.DataFrame({"step": np.arange(2000), "loss": 1.0})}, {"x": ["mls:0"]}, ["mls"])
    assert len(text.splitlines()) == 1 + POINTS and text.splitlines()[1] == "mls,0,2,1", "means of five"


def test_the_published_folder_holds_the_curves_of_every_trained_run(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mls.report.build_tables.draw_figures", lambda *_: [])
    plan = small_plan(seeds=[0, 1])
    write_inputs(plan, lambda label: {"mAP": 50.0, "box_AP": 10.0})
    make_tables(plan)
    rows = list(csv.DictReader(io.StringIO((publish_tables(plan) / "curves.csv").read_text())))
    assert [(r["run"], r["seed"]) for r in rows] == [("mls", "0")] * 40 + [("mls", "1")] * 40, "random has no curve"
    assert (rows[0]["step"], rows[0]["info_nce"]) == ("0", "8") and rows[40]["step"] == "1"


def frame(**columns: float) -> pd.DataFrame:
    return pd.DataFrame({"epoch": np.arange(4.0), **{name: np.full(4, value) for name, value in columns.items()}})


def test_panels_draw_what_they_say() -> None:
    curves = {
        "a": frame(
            queue_mean=0.5, alignment=0.5, weight=0.5, grad_ml=4.0, grad_nce=8.0, agreement=0.75, agreement_base=0.5
        ),
        "b": frame(queue_mean=0.25, alignment=2.0),
    }
    figure = draw_mechanism(curves, LABELS, ["mls", "moco-v2"])
    assert figure is not None
    drawn = {axes.get_title(): [line.get_ydata()[0] for line in axes.lines] for axes in figure.axes}  # type: ignore[index]
    assert drawn == {
        "length of the mean of Q_z": [0.5, 0.25],
        "cosine of z and its key": [0.75, 0.0],
        "gradient on z: lambda multi-label / InfoNCE": [0.25],
        "agreement above chance, each run's own k": [0.25],
    }, "a panel without data is left out, a run without the columns has no line"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mls", "moco-v2"]


def test_the_logarithmic_axis_has_plain_numbers() -> None:
    one = frame(weight=0.5, grad_ml=4.0, grad_nce=8.0)
    one["grad_ml"] = [1.0, 2.0, 3.0, 4.0]  # less than a decade: the minor ticks are the labelled ones
    with plain_style():
        figure = draw_mechanism({"a": one}, LABELS, ["mls", "moco-v2"])
        assert figure is not None
        figure.draw_without_rendering()
    ticks = [t.get_text() for t in figure.axes[0].get_yticklabels(which="both") if t.get_text()]
    assert ticks and all(float(text.replace("−", "-")) > 0 for text in ticks)  # noqa: RUF001


def test_gaps_are_left_out_of_a_line() -> None:
    one = frame(knn=0.3)
    one.loc[1, "knn"] = np.nan
    figure = draw_mechanism({"a": one}, LABELS, ["mls", "moco-v2"])
    assert figure is not None and draw_mechanism({"a": frame()}, LABELS, ["mls"]) is None
    (axes,) = figure.axes
    assert axes.get_title() in MECHANISM and np.array_equal(axes.lines[0].get_xdata(), [0.0, 2.0, 3.0])

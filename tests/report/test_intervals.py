"""Bootstrap intervals of cells of one value: shown beside the value, never where several values were averaged."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from mls.report.formats import to_csv, to_latex, to_markdown
from mls.report.tables import BootstrapInterval, FilledTable, bootstrap, fill_table, to_metrics


def probed(value: float | None, ends: list[float] | None, metric: str = "mAP", covers: str = "test") -> dict[str, Any]:
    """Content of a probe's metrics.json."""
    about = {"covers": f"{covers} sampling only", "level": 0.95, "resamples": 1000, "per_class": {"disc": [1.0, 2.0]}}
    return {metric: value, "mAP_11": 51.0, "interval": {**about, metric: ends}}


def filled(seeds: dict[str, list[dict[str, Any]]], column: str = "svm.mAP", **more: Any) -> FilledTable:
    """A table of one column; each row has its seeds' metrics."""
    rows: list[dict[str, Any]] = []
    metrics: dict[str, dict[str, Any]] = {}
    for row, found in seeds.items():
        pairs = [[f"p-{row}{i}", f"t-{row}{i}"] for i in range(len(found))]
        rows.append({"label": row, "tasks": {column.split(".")[0]: pairs}})
        metrics |= {task: one for (_, task), one in zip(pairs, found, strict=True)}
    return fill_table("main", {"columns": [column], "rows": rows} | more, metrics)


ONE = {"mls": [probed(52.04, [50.6, 53.25])]}
NOTE = (
    "[low, high]: 95 % bootstrap interval over the images: test sampling only, without the variance between "
    "pretrainings."
)


def lines(table: FilledTable) -> list[str]:
    return [" ".join(line.split()) for line in to_markdown(table, "e").splitlines()]


def test_one_value_shows_its_interval_everywhere() -> None:
    table = filled(ONE)
    assert "| mls | 52.0 [50.6, 53.2] | 1 |" in lines(table) and f"- {NOTE}" in lines(table)
    assert "- n = 1: one value, so no ±." in lines(table), "and not: no interval"
    tex = to_latex(table, "e")
    assert r"mls & 52.0 [50.6, 53.2] & 1 \\" in tex and r"95 \% bootstrap" in tex
    (row,) = csv.DictReader(io.StringIO(to_csv(table)))
    assert (row["low"], row["high"], row["half_width"], row["source"]) == ("50.6", "53.25", "", "measured")
    assert to_metrics(table)["mls"]["svm.mAP"] == {
        "mean": 52.04,
        "half_width": None,
        "n": 1,
        "low": 50.6,
        "high": 53.25,
    }


def test_a_mean_that_leaves_out_classes_says_so() -> None:
    one = {**probed(52.0, [50.0, 54.0]), "per_class": {"disc": 52.0, "ring": None}, "classes_in_mean": 1}
    note = (
        "- svm: means over 1 of 2 classes; of the others, training or evaluation has only positive or only negative "
        "images."
    )
    assert note in lines(filled({"mls": [one]})) and note not in lines(filled(ONE))
    assert note not in lines(filled({"mls": [one | {"classes_in_mean": 2}]}))
    assert note not in lines(filled({"mls": [one | {"top1": 52.0}]}, "svm.top1"))


def test_the_best_is_bold_with_its_interval() -> None:
    table = filled(ONE | {"random": [probed(40.0, [39.0, 41.0])]})
    assert "| mls | **52.0 [50.6, 53.2]** | 1 |" in lines(table)
    assert r"\textbf{52.0 [50.6, 53.2]}" in to_latex(table, "e")


def test_several_seeds_keep_their_t_interval() -> None:
    table = filled({"mls": [probed(52.0, [50.0, 54.0]), probed(52.0, [50.0, 54.0])]})
    assert "| mls | 52.0 ± 0.0 | 2 seeds |" in lines(table)
    assert "[" not in to_markdown(table, "e") and "low" not in to_metrics(table)["mls"]["svm.mAP"]


def test_one_value_left_of_two_seeds_has_no_interval() -> None:
    table = filled({"mls": [probed(52.0, [50.0, 54.0]), probed(None, None)]})
    assert "| mls | 52.0 (1 of 2) | 2 seeds |" in lines(table)


def test_seeds_and_a_single_value_stand_in_one_table() -> None:
    table = filled(ONE | {"given": [probed(60.0, [59.0, 61.0]), probed(62.0, [61.0, 63.0])]})
    text = to_markdown(table, "e")
    assert "52.0 [50.6, 53.2]" in text and "± 12.7" in text and NOTE in text and "t-interval" in text
    assert [("low" in cells["svm.mAP"]) for cells in to_metrics(table).values()] == [True, False]


@pytest.mark.parametrize(
    "metrics",
    [
        {"mAP": 52.0},
        {"mAP": 52.0, "interval": None},
        probed(52.0, None),
        {"mAP": 52.0, "interval": {"covers": "test sampling only", "level": 0.95, "top1": [1.0, 2.0]}},
    ],
)
def test_a_metric_without_interval_is_as_before(metrics: dict[str, Any]) -> None:
    table = filled({"mls": [metrics]})
    assert "| mls | 52.0 | 1 |" in lines(table) and "- n = 1: one value, so no interval." in lines(table)
    assert "bootstrap" not in to_markdown(table, "e")
    assert to_metrics(table)["mls"]["svm.mAP"] == {"mean": 52.0, "half_width": None, "n": 1}
    (row,) = csv.DictReader(io.StringIO(to_csv(table)))
    assert (row["low"], row["high"]) == ("", "")


def test_an_undefined_value_has_no_interval() -> None:
    table = filled({"mls": [probed(None, [1.0, 2.0])]})
    assert table.cells["mls"]["svm.mAP"].interval is None and "[" not in to_markdown(table, "e")


def test_val_is_not_called_test() -> None:
    table = filled({"mls": [probed(52.0, [50.0, 54.0], metric="val", covers="val")]}, "svm.val")
    text = to_markdown(table, "e")
    assert "52.0 [50.0, 54.0]" in text and "val sampling only" in text and "test sampling" not in text


def test_a_difference_has_no_bootstrap_interval() -> None:
    table = filled(ONE | {"random": [probed(40.0, [39.0, 41.0])]}, baseline="random")
    assert "| mls - random | +12.0 | 1 |" in lines(table)
    assert "low" not in to_metrics(table)["mls - random"]["svm.mAP"]


def test_a_metric_called_like_a_description_is_not_taken_for_ends() -> None:
    metrics = probed(52.0, [50.0, 54.0])
    assert bootstrap(metrics, "mAP") == BootstrapInterval(50.0, 54.0, 0.95, "test sampling only")
    assert bootstrap(metrics, "mAP_11") is None

"""Rankings score as in a plain loop over scikit-learn; the written file holds all that the metrics follow from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score

from mls.probe import knn
from mls.probe.columns import read_file
from mls.probe.retrieval import Retrieved, retrieval_metrics, retrieve, to_ranking, write_ranking
from mls.runtime.errors import MlsError
from tests.probe.support import images_of, with_threads

NAMES = ["ant", "bee", "cat", "dog"]


def make_data(n: int, seed: int, dims: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 4)) < 0.3
    features = np.pad(truth, ((0, 0), (0, dims - 4))) + 0.7 * rng.normal(size=(n, dims))
    return features.astype(np.float32), truth


def run(gallery: Any, query: Any, ignored: Any = None, at: tuple[int, ...] = (1, 5), **more: Any) -> Retrieved:
    ranked = images_of(gallery[0], gallery[1], ignored, classes=NAMES[: gallery[1].shape[1]])
    return retrieve(ranked, images_of(*query), precision_at=at, **more)


@pytest.mark.parametrize("with_ignored", [False, True])
def test_equals_a_loop_over_scikit_learn(with_ignored: bool) -> None:
    gallery, query = make_data(90, 0), make_data(40, 1)
    ignored = ~gallery[1] & (np.random.default_rng(2).random((90, 4)) < 0.3) if with_ignored else None
    found = run(gallery, query, ignored)
    assert found.ap_MC.dtype == np.float32
    for m in range(40):
        cosine = gallery[0] @ query[0][m] / np.linalg.norm(gallery[0], axis=1)
        for c in range(4):
            values = [found.ap_MC[m, c], found.precision[1][m, c], found.precision[5][m, c]]
            if not query[1][m, c]:
                assert np.isnan(values).all()
                continue
            counts = np.ones(90, dtype=bool) if ignored is None else ~ignored[:, c]
            relevant = gallery[1][counts, c]
            ranked = relevant[np.argsort(-cosine[counts])]
            expected = [average_precision_score(relevant, cosine[counts]), ranked[0], ranked[:5].mean()]
            np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_values_are_means_over_queries_then_classes() -> None:
    gallery, query = make_data(90, 0), make_data(40, 1)
    query[1][:, 0] = np.arange(40) < 2  # few queries weigh as much as many
    found = run(gallery, query)
    per_class = [np.mean([found.ap_MC[m, c] for m in range(40) if query[1][m, c]]) for c in range(4)]
    np.testing.assert_allclose(found.per_class_C, per_class, rtol=1e-6)
    assert (
        found.value == pytest.approx(np.mean(per_class)) and retrieval_metrics(found, "test")["undefined_classes"] == []
    )
    at_5 = [found.precision[5][query[1][:, c], c].mean() for c in range(4)]
    assert found.precision_at(5) == pytest.approx(np.mean(at_5))
    assert found.value > 1.3 * gallery[1].mean()  # chance is about the mean


def test_classes_that_nobody_asks_for_or_nobody_has_are_undefined() -> None:
    gallery, query = make_data(50, 0), make_data(20, 1)
    gallery[1][:, 1] = False
    query[1][:, 3] = False
    found = run(gallery, query)
    assert retrieval_metrics(found, "test")["undefined_classes"] == ["bee", "dog"]
    assert np.isnan(found.ap_MC[:, [1, 3]]).all() and np.isnan(found.precision[5][:, [1, 3]]).all()
    assert found.value == pytest.approx(found.per_class_C[[0, 2]].mean())
    with pytest.raises(MlsError, match="no class has a query, and images with and without it in the gallery"):
        run(gallery, (query[0], np.zeros_like(query[1])))
    with pytest.raises(MlsError, match="no class has a query"):
        run((gallery[0], gallery[1] & (np.arange(4) > 2)), (query[0], query[1] & (np.arange(4) < 3)))


def test_a_class_of_the_whole_gallery_is_left_out() -> None:
    gallery, query = make_data(30, 0), make_data(10, 1)
    alone = run(gallery, (query[0], query[1] & (np.arange(4) > 0)))
    found = run((gallery[0], gallery[1] | (np.arange(4) == 0)), query)  # it would count as 1
    assert found.value == alone.value and np.isnan(found.per_class_C[0])
    assert retrieval_metrics(found, "test")["undefined_classes"] == ["ant"]
    assert retrieval_metrics(found, "test")["classes_in_mean"] == 3


def test_ties_rank_by_row() -> None:
    gallery = np.ones((4, 2), dtype=np.float32), np.array([[False], [True], [False], [True]])
    query = np.array([[1, 0], [0, 0]], dtype=np.float32), np.array([[True], [True]])
    found = run(gallery, query, at=(2,))
    np.testing.assert_allclose(found.ap_MC[:, 0], [(1 / 2 + 2 / 4) / 2] * 2)  # zeros are equally far from all
    np.testing.assert_allclose(found.precision[2][:, 0], [1 / 2] * 2)


def test_blocks_without_a_query_of_a_class_that_has_ignored_images(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, query = make_data(30, 0), make_data(10, 1)
    query[1][:, 2] = np.arange(10) == 9
    ignored = ~gallery[1] & (np.arange(30) % 3 == 0)[:, None]
    assert ignored[:, 2].any()
    expected = run(gallery, query, ignored)
    monkeypatch.setattr(knn, "COSINES", 3 * 30)  # three queries a block: all but the last lack class 2
    found = run(gallery, query, ignored)
    np.testing.assert_array_equal(found.ap_MC, expected.ap_MC)
    assert np.isnan(found.ap_MC[:9, 2]).all() and found.ap_MC[9, 2] > 0


@pytest.mark.parametrize(("block", "threads"), [(1, 1), (7 * 180, 3), (2**22, 2)])
def test_blocks_and_threads_change_nothing(block: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, query = make_data(90, 0), make_data(40, 1)
    gallery = np.concatenate([gallery[0]] * 2), np.concatenate([gallery[1], ~gallery[1]])  # ties everywhere
    expected = run(gallery, query)
    monkeypatch.setattr(knn, "COSINES", block)
    found = with_threads(threads, lambda: run(gallery, query))
    np.testing.assert_array_equal(found.ap_MC, expected.ap_MC)
    np.testing.assert_array_equal(found.precision[5], expected.precision[5])


def test_what_cannot_be_done_is_refused() -> None:
    gallery, query = make_data(30, 0), make_data(30, 1)
    ignored = np.zeros_like(gallery[1])
    ignored[np.flatnonzero(~gallery[1][:, 2])[1:], 2] = True
    count = int(gallery[1][:, 2].sum()) + 1
    with pytest.raises(MlsError, match=rf"precision_at: 20 is more than the {count} gallery images .* class 'cat'"):
        run(gallery, query, ignored, at=(1, 20))
    with pytest.raises(MlsError, match="precision_at: 31 is more than the 30"):
        run(gallery, query, at=(31,))
    query[0][2] = np.nan
    with pytest.raises(MlsError, match="1 of 30 query images are NaN"):
        run(gallery, query)
    with pytest.raises(MlsError, match="gallery images are NaN"):
        run(query, gallery)


def test_the_values_follow_from_the_file_which_repeats_byte_for_byte(tmp_path: Path) -> None:
    gallery, query = make_data(50, 0), make_data(20, 1)
    query[1][:, 3] = False
    for name in ("a", "b"):
        found = run(gallery, query)
        write_ranking(found, np.arange(100, 120), [f"{m}.jpg" for m in range(20)], "test", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    table = pq.read_table(tmp_path / "a")
    assert table.column_names[:7] == ["image", "name", "split", "ap:ant", "p@1:ant", "p@5:ant", "ap:bee"]
    assert table["image"].to_pylist()[:2] == [100, 101] and table["name"][1].as_py() == "1.jpg"
    assert set(table["split"].to_pylist()) == {"test"}
    for c, name in enumerate(NAMES):
        assert table[f"ap:{name}"].null_count == (~query[1][:, c]).sum()
    for prefix, value in (("ap", found.value), ("p@1", found.precision_at(1)), ("p@5", found.precision_at(5))):
        columns = [table[f"{prefix}:{name}"].drop_null().to_numpy() for name in NAMES[:3]]
        assert value == pytest.approx(np.mean([column.mean(dtype=np.float64) for column in columns]), abs=1e-12)


# --------------------------------------------------------------------------------------------- reading it again


def write(path: Path, names: list[str] = NAMES, split: str = "val", at: tuple[int, ...] = (5, 1)) -> Retrieved:
    gallery, query = make_data(50, 0), make_data(20, 1)
    query[1][:, 3] = False
    found = retrieve(images_of(*gallery, classes=names), images_of(*query), precision_at=at)
    write_ranking(found, np.arange(20), [f"{m}.jpg" for m in range(20)], split, path)
    return found


@pytest.mark.parametrize("names", [NAMES, ["a:b", "ap:a:b", "p@1:a:b", ""]])
def test_read_exactly_as_it_was_written(names: list[str], tmp_path: Path) -> None:
    found = write(tmp_path / "p", names)
    again, split = read_file(tmp_path / "p", to_ranking)
    assert (again.names, list(again.precision), split) == (names, [1, 5], "val")
    np.testing.assert_array_equal(again.ap_MC, found.ap_MC)
    assert again.ap_MC.dtype == np.float32
    for k in (1, 5):
        np.testing.assert_array_equal(again.precision[k], found.precision[k])
    for part in ("test", "val"):
        assert json.dumps(retrieval_metrics(again, part)) == json.dumps(retrieval_metrics(found, part))


def replace(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def floats(*values: float | None) -> pa.Array:
    return pa.array([*values, *[0.5] * (20 - len(values))], pa.float32())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.drop_columns(["split"]), "lacks split"),
        (lambda t: t.drop_columns(["p@5:bee"]), "lacks p@5:bee"),
        (lambda t: t.drop_columns(["ap:bee"]), r"has in addition p@1:bee \(float\), p@5:bee"),
        (lambda t: t.append_column("ap:bee", floats()), r"lacks p@.*|has in addition ap:bee \(float\); make"),
        (lambda t: t.append_column("score:bee", floats()), "has in addition score:bee"),
        (lambda t: t.append_column("p@01:bee", floats()), "has in addition p@01:bee"),
        (lambda t: t.append_column("p@" + "9" * 5000 + ":bee", floats()), "has in addition p@999"),
        (
            lambda t: replace(t, "ap:bee", pa.array(["x"] * 20)),
            r"lacks ap:bee .* ap:bee \(string\)",
        ),
        (lambda t: replace(t, "split", pa.array(["val"] * 19 + ["test"])), "not of one split"),
        (lambda t: replace(t, "split", pa.array(["train"] * 20)), r"but of \['train'\]"),
        (lambda t: replace(t, "split", pa.array([None] * 20, pa.string())), r"but of \[None\]"),
        (lambda t: t.slice(0, 0), r"but of \[None\]"),
        (lambda t: replace(t, "ap:dog", floats(1.5)), "values outside 0 to 1"),
        (lambda t: replace(t, "p@1:ant", floats(float("nan"))), "values outside 0 to 1"),
        (lambda t: replace(t, "p@1:dog", floats(0.5)), "only a part of a query's values"),
        (lambda t: pa.table([*t.columns[:3], *[pa.nulls(20, pa.float32())] * 12], schema=t.schema), "no value of any"),
    ],
)
def test_damage_is_named(damage: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "p")
    pq.write_table(damage(pq.read_table(tmp_path / "p")), tmp_path / "p")
    with pytest.raises(MlsError, match=f"/p: .*{message}"):
        read_file(tmp_path / "p", to_ranking)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MlsError, match=r"/p does not exist"):
        read_file(tmp_path / "p", to_ranking)
    for content in (b"", b"PAR1" * 9):
        (tmp_path / "p").write_bytes(content)
        with pytest.raises(MlsError, match=r"/p is not a readable Parquet file .*make the probe again"):
            read_file(tmp_path / "p", to_ranking)

"""The probe stage: a classifier on a backbone, its score on test (or, with ``test: false``, on val).

    python -m mls probe linear/mls:0

| kind | trained on | chosen by | reads |
|---|---|---|---|
| ``linear``, ``knn`` | train | val | features |
| ``svm`` | train and val | cross-validation | features |
| ``retrieval`` | - | - | features |
| ``finetune``, ``sgd`` | train and val | - (the last epoch) | images |

With ``test: false`` train is all that is trained on, and val is judged. Test is read once, when everything is chosen.

Writes ``metrics.json`` (percent) and ``predictions.parquet``, from which the metrics can be computed anew (``mls
score``; see ``mls.probe.judge``; of retrieval, see ``mls.probe.retrieval``); ``finetune`` and ``sgd`` also
``curves.csv`` and ``timing.csv``, low-shot SVMs ``low_shot.csv``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mls.data.store import Store
from mls.errors import MlsError
from mls.experiment.params import Backbone
from mls.experiment.stage import Context
from mls.experiment.tasks import (
    FinetuneProbe,
    FrozenProbe,
    KnnProbe,
    LinearProbe,
    ProbeTask,
    RetrievalProbe,
    SgdProbe,
    SvmProbe,
    TrainedProbe,
)
from mls.files import write_csv, write_json
from mls.models.backbone import load_backbone
from mls.probe import knn, linear, retrieval, svm
from mls.probe.feature_set import FeatureSet, Images
from mls.probe.finetune import train_and_score
from mls.probe.judge import Judged, summarise, write_predictions
from mls.probe.low_shot import low_shot
from mls.probe.metrics import Scores
from mls.train.runtime import set_up

FIRST_SEED = 1000
"""Trial 0's seed. Trials, not pretraining seeds, number the repeats of a task; only training on images has any."""

Facts = dict[str, Any]
"""What ``metrics.json`` says beside the metrics: how the classifier came about."""


def run(context: Context) -> None:
    """Make a probe artifact.

    Raises:
        MlsError: a split without images, or labels that nothing can be learned from or judged by.
        DeterministicError: the training diverged.
        Interrupted: a signal came; what is trained on images saves its state, the rest starts again.
    """
    task: ProbeTask = context.job.config
    if isinstance(task, RetrievalProbe):
        metrics = rank(context, task)
    else:
        if isinstance(task, FinetuneProbe | SgdProbe):
            judged, facts = train_on_images(context, task)
        else:
            judged, facts = fit_on_features(context, task)
        metrics = facts | summarise(judged)
        write_predictions(judged, context.out / "predictions.parquet")
    write_json(metrics, context.out / "metrics.json", indent=1)


def fit_on_features(context: Context, task: LinearProbe | SvmProbe | KnnProbe) -> tuple[Judged, Facts]:
    """Fit a classifier on frozen features and score the judged split with it."""
    features = FeatureSet(context.inputs["features"].path)
    judged_split = "test" if task.test else "val"
    train, val, judged = (features.images(split) for split in ("train", "val", judged_split))
    threads = context.execution.threads
    facts: Facts = {"n_train": len(train.names), "n_val": len(val.names)}
    if isinstance(task, LinearProbe):
        logistic = linear.fit(
            train.features_ND,
            train.truth_NC,
            val.features_ND,
            val.truth_NC,
            strengths=task.strengths,
            multi_label=features.multi_label,
            names=features.classes,
            threads=threads,
            train_ignored_NC=train.ignored_NC,
            val_ignored_MC=val.ignored_NC,
        )
        facts |= {
            "val": 100 * logistic.value,
            "strength": logistic.strength,
            "candidates": percent(logistic.candidates),
            "untrained_classes": logistic.untrained,
            "unconverged_fits": logistic.unconverged,
        }
        scores_NC = logistic.scores(judged.features_ND)
    elif isinstance(task, KnnProbe):
        votes = knn.fit(
            train.features_ND,
            train.truth_NC,
            val.features_ND,
            val.truth_NC,
            ks=task.ks,
            temperature=task.temperature,
            multi_label=features.multi_label,
            names=features.classes,
            val_ignored_MC=val.ignored_NC,
            threads=threads,
        )
        facts |= {
            "val": 100 * votes.value,
            "k": votes.k,
            "candidates": percent(votes.candidates),
            "untrained_classes": votes.untrained,
        }
        scores_NC = votes.scores(judged.features_ND)
    else:
        scores_NC, found = fit_svm(context, task, features, judged)
        facts |= found
    if unconverged := facts.get("unconverged_fits"):
        context.log(f"{unconverged} fits stopped at the limit of iterations before they converged")
    return judge(task, features, judged, judged_split, scores_NC), facts


def fit_svm(context: Context, task: SvmProbe, features: FeatureSet, judged: Images) -> tuple[Scores, Facts]:
    """Fit SVMs on all that is not judged; also the low-shot ones, where some are wanted."""
    if task.low_shot and not features.multi_label:
        raise MlsError("low_shot: this dataset has one label an image; low-shot SVMs need several")
    facts: Facts = {}
    if task.low_shot:
        train, val = features.images("train"), features.images("val")
        facts, rows = low_shot(
            *((part.features_ND, part.truth_NC, part.ignored_NC) for part in (train, val, judged)),
            ks=task.low_shot,
            samples=task.samples,
            costs=task.costs,
            names=features.classes,
            seed=FIRST_SEED,
            threads=context.execution.threads,
            name=f"probe {context.label}: low-shot",
        )
        write_csv(rows, context.out / "low_shot.csv")
    known = features.images("train", "val") if task.test else features.images("train")
    fitted = svm.fit(
        known.features_ND,
        known.truth_NC,
        costs=task.costs,
        folds=task.folds,
        names=features.classes,
        multi_label=features.multi_label,
        threads=context.execution.threads,
        name=f"probe {context.label}",
    )
    facts |= {
        "costs": fitted.costs,
        "cross_validation": {name: percent(found) for name, found in fitted.cross_validation.items()},
        "untrained_classes": fitted.untrained,
        "not_cross_validated": fitted.not_cross_validated,
        "unconverged_fits": fitted.unconverged,
    }
    return fitted.scores(judged.features_ND), facts


def judge(task: FrozenProbe, features: FeatureSet, judged: Images, split: str, scores_NC: Scores) -> Judged:
    """Put scores beside what is true of their images."""
    return Judged(
        rows_N=judged.rows_N,
        names=judged.names,
        split=split,
        classes=features.classes,
        multi_label=features.multi_label,
        truth_NC=judged.truth_NC,
        ignored_NC=judged.ignored_NC,
        scores_NC=scores_NC,
        decided=isinstance(task, LinearProbe),  # logits: 0 means even odds
    )


def rank(context: Context, task: RetrievalProbe) -> Facts:
    """Rank train images for each judged one; write the rankings' values and return the metrics."""
    features = FeatureSet(context.inputs["features"].path)
    split = "test" if task.test else "val"
    gallery, queries = features.images("train"), features.images(split)
    found = retrieval.retrieve(
        gallery.features_ND,
        gallery.truth_NC,
        gallery.ignored_NC,
        queries.features_ND,
        queries.truth_NC,
        precision_at=task.precision_at,
        names=features.classes,
        threads=context.execution.threads,
    )
    retrieval.write_ranking(found, queries.rows_N, queries.names, split, context.out / "predictions.parquet")
    return retrieval.summarise(found, split) | {"n_train": len(gallery.names), f"n_{split}": len(queries.names)}


def train_on_images(context: Context, task: TrainedProbe) -> tuple[Judged, Facts]:
    """Train a classifier, and the backbone with kind ``finetune``, on images; score the judged split."""
    seed = FIRST_SEED + context.job.seed
    device = set_up(context.execution, seed)
    store = Store(context.inputs["data"].path)
    pretrain = context.inputs["pretrain"]
    layout = Backbone.model_validate(pretrain.read_json("params.json")["resolved"]["backbone"])
    outcome = train_and_score(
        task,
        store,
        load_backbone(layout, pretrain.file("backbone.safetensors")),
        seed=seed,
        device=device,
        execution=context.execution,
        work=context.work,
        log=context.log,
        name=f"probe {context.label}",
    )
    write_csv(outcome.history.curves, context.out / "curves.csv")
    write_csv(outcome.history.timing, context.out / "timing.csv")
    write_json({"seed": seed, "total_steps": outcome.steps}, context.out / "derived.json")
    rows = outcome.rows_N
    judged = Judged(
        rows_N=rows,
        names=[store.name(int(row)) for row in rows],
        split=outcome.split,
        classes=store.classes,
        multi_label=store.multi_label,
        truth_NC=store.labels(rows),
        ignored_NC=store.ignored(rows),
        scores_NC=outcome.scores_NC,
        decided=True,
    )
    return judged, {"n_train": outcome.train_images, "untrained_classes": outcome.untrained}


def percent(shares: Mapping[Any, float]) -> dict[str, float]:
    """Candidates and their values as JSON has them."""
    return {f"{candidate:g}": 100 * share for candidate, share in shares.items()}

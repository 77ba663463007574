"""The probe stage: a classifier on a backbone, evaluated on test (or, with ``test: false``, on val).

    python -m mls probe linear/mls:0

| kind | trained on | chosen by | reads |
|---|---|---|---|
| ``linear``, ``knn`` | train | val | features |
| ``svm`` | train and val | cross-validation | features |
| ``retrieval`` | - | - | features |
| ``finetune``, ``sgd`` | train and val | - (the last epoch) | images |

With ``test: false`` all kinds train on train and are evaluated on val. Test is read once, after every choice is made.

Writes ``metrics.json`` (percent) and ``predictions.parquet``, from which ``mls score`` computes the metrics again (see
``mls.probe.evaluation``, and ``mls.probe.retrieval``); ``finetune`` and ``sgd`` also write ``curves.csv`` and
``timing.csv``, low-shot SVMs ``low_shot.csv``.
"""

from __future__ import annotations

from mls.config.probes import DECIDED, FinetuneProbe, FrozenProbe, ProbeConfig, RetrievalProbe, SgdProbe, TrainedProbe
from mls.data.image_store import ImageStore
from mls.pipeline.plan import FIRST_SEED
from mls.pipeline.runner import Context
from mls.probe import retrieval
from mls.probe.evaluation import Evaluation, check_told_apart, summarise, write_predictions
from mls.probe.feature_set import FeatureSet, Parts
from mls.probe.frozen import FITS, Facts, device_of
from mls.runtime.files import write_json


def run(context: Context) -> None:
    """Make a probe artifact.

    Raises:
        MlsError: a split has no images, or no labels to learn from or to evaluate by.
        DeterministicError: the training diverged.
        Interrupted: a signal came; training on images saves its state, everything else starts again.
    """
    task: ProbeConfig = context.job.config
    if isinstance(task, RetrievalProbe):
        metrics = rank_images(context, task)
    else:
        if isinstance(task, FinetuneProbe | SgdProbe):
            evaluation, facts = train_on_images(context, task)
        else:
            evaluation, facts = fit_on_features(context, task)
        metrics = facts | summarise(evaluation)
        write_predictions(evaluation, context.out / "predictions.parquet")
    if left_out := text_of_left_out(metrics):
        context.log(left_out)
    write_json(metrics, context.out / "metrics.json", indent=1)


def text_of_left_out(metrics: Facts) -> str:
    """One line about the classes that means leave out; empty if they leave out none."""
    names = [name for name, value in metrics["per_class"].items() if value is None]
    if not names or "classes_in_mean" not in metrics:
        return ""
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"means are over {metrics['classes_in_mean']} of {len(metrics['per_class'])} classes: "
        f"what was trained on or evaluated can't tell apart {listed} (all of its images have the class, or none has)"
    )


def fit_on_features(context: Context, task: FrozenProbe) -> tuple[Evaluation, Facts]:
    """Fit a classifier on frozen features and score the evaluated split with it."""
    features = FeatureSet(context.inputs["features"].path)
    split = "test" if task.test else "val"
    parts = Parts(*(features.images(one) for one in ("train", "val", split)))
    if features.multi_label:
        check_told_apart(parts.evaluated.truth_NC, parts.evaluated.ignored_NC, split)  # here: some fits take hours
    scores_NC, found = FITS[type(task)](context, task, features, parts)
    if unconverged := found.get("unconverged_fits"):
        context.log(f"{unconverged} fits reached the limit of iterations before they converged")
    evaluation = Evaluation(
        rows_N=parts.evaluated.rows_N,
        names=parts.evaluated.names,
        split=split,
        classes=features.classes,
        multi_label=features.multi_label,
        truth_NC=parts.evaluated.truth_NC,
        ignored_NC=parts.evaluated.ignored_NC,
        scores_NC=scores_NC,
        decided=set(DECIDED) <= set(task.metrics),
        untrained=found.pop("untrained_classes", []),
    )
    return evaluation, {"n_train": len(parts.train.names), "n_val": len(parts.val.names), **found}


def rank_images(context: Context, task: RetrievalProbe) -> Facts:
    """Rank the train images for each evaluated one; write the values of the rankings and return the metrics."""
    features = FeatureSet(context.inputs["features"].path)
    split = "test" if task.test else "val"
    gallery, queries = features.images("train"), features.images(split)
    how: Facts = {"device": device_of(context), "name": f"probe {context.label}"}
    found = retrieval.retrieve(gallery, queries, precision_at=task.precision_at, **how)
    retrieval.write_ranking(found, queries.rows_N, queries.names, split, context.out / "predictions.parquet")
    return retrieval.retrieval_metrics(found, split) | {
        "n_train": len(gallery.names),
        f"n_{split}": len(queries.names),
    }


def train_on_images(context: Context, task: TrainedProbe) -> tuple[Evaluation, Facts]:
    """Train a classifier on images, with kind ``finetune`` also the backbone, and score the evaluated split."""
    # They import torchvision, which takes seconds; a classifier on features does not need it.
    from mls.probe.features import load_pretrained
    from mls.probe.finetune import train_and_score
    from mls.runtime.device import set_up

    device = set_up(context.execution.device, context.execution.threads, FIRST_SEED + context.job.seed)
    backbone = load_pretrained(context.inputs["pretrain"])
    return train_and_score(context, task, ImageStore(context.inputs["data"].path), backbone, device)

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
score``; see ``mls.probe.evaluation``; of retrieval, see ``mls.probe.retrieval``); ``finetune`` and ``sgd`` also
``curves.csv`` and ``timing.csv``, low-shot SVMs ``low_shot.csv``.
"""

from __future__ import annotations

from mls.config.experiment import Backbone
from mls.config.probes import DECIDED, FinetuneProbe, FrozenProbe, ProbeConfig, RetrievalProbe, SgdProbe, TrainedProbe
from mls.data.image_store import ImageStore
from mls.metrics import Scores
from mls.models.backbone import load_backbone
from mls.pipeline.runner import Context
from mls.probe import retrieval
from mls.probe.evaluation import Evaluation, summarise, write_predictions
from mls.probe.feature_set import FeatureSet, Images, Parts
from mls.probe.finetune import train_and_score
from mls.probe.frozen import FIRST_SEED, FITS, Facts
from mls.runtime.device import set_up
from mls.runtime.files import write_csv, write_json


def run(context: Context) -> None:
    """Make a probe artifact.

    Raises:
        MlsError: a split without images, or labels that nothing can be learned from or judged by.
        DeterministicError: the training diverged.
        Interrupted: a signal came; what is trained on images saves its state, the rest starts again.
    """
    task: ProbeConfig = context.job.config
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


def fit_on_features(context: Context, task: FrozenProbe) -> tuple[Evaluation, Facts]:
    """Fit a classifier on frozen features and score the judged split with it."""
    features = FeatureSet(context.inputs["features"].path)
    split = "test" if task.test else "val"
    parts = Parts(*(features.images(one) for one in ("train", "val", split)))
    scores_NC, found = FITS[type(task)](context, task, features, parts)
    if unconverged := found.get("unconverged_fits"):
        context.log(f"{unconverged} fits stopped at the limit of iterations before they converged")
    counts = {"n_train": len(parts.train.names), "n_val": len(parts.val.names)}
    return judge(task, features, parts.judged, split, scores_NC), counts | found


def judge(task: FrozenProbe, features: FeatureSet, judged: Images, split: str, scores_NC: Scores) -> Evaluation:
    """Put scores beside what is true of their images."""
    return Evaluation(
        rows_N=judged.rows_N,
        names=judged.names,
        split=split,
        classes=features.classes,
        multi_label=features.multi_label,
        truth_NC=judged.truth_NC,
        ignored_NC=judged.ignored_NC,
        scores_NC=scores_NC,
        decided=set(DECIDED) <= set(task.metrics),
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


def train_on_images(context: Context, task: TrainedProbe) -> tuple[Evaluation, Facts]:
    """Train a classifier, and the backbone with kind ``finetune``, on images; score the judged split."""
    seed = FIRST_SEED + context.job.seed
    device = set_up(context.execution.device, context.execution.threads, seed)
    store = ImageStore(context.inputs["data"].path)
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
    judged = Evaluation(
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

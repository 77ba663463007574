"""The transfer stage: fine-tune on train, predict test once, score. ``mls score`` scores the predictions again.

    python -m mls transfer detect/mls:0
    torchrun --nproc-per-node 2 -m mls transfer detect/mls:0   # on two GPUs; batch_size stays the whole batch's
    python -m mls score detect/mls:0

Writes ``metrics.json``, ``predictions.json`` (COCO results format; ``image_id`` is the row of the data artifact;
scores and boxes are the model's own float32), ``curves.csv`` and ``timing.csv``. The last state of the training is
evaluated; no checkpoint is chosen by its score.
"""

from __future__ import annotations

import torch

from mls.config.experiment import Backbone
from mls.config.transfers import Detector, TransferConfig
from mls.data.image_store import ImageStore
from mls.pipeline.artifact import Artifact
from mls.pipeline.plan import FIRST_SEED
from mls.pipeline.runner import Context
from mls.probe.score import compare
from mls.runtime.collectives import join, leave, rank, world
from mls.runtime.device import set_up, workers_of
from mls.runtime.files import write_csv, write_json
from mls.train.finetune import finetune
from mls.transfer.interface import Given, made_by, scored


def run(context: Context) -> None:
    """Make a transfer artifact: all ranks train and predict, rank 0 scores and writes.

    Raises:
        MlsError: the dataset holds nothing to train on or to test on; the backend is not installed; the ranks can't
            share a batch.
        DeterministicError: the backbone does not fit, or the training diverged.
        Interrupted: a signal came; the state is saved.
    """
    seed = FIRST_SEED + context.job.seed
    device = set_up(context.execution.device, context.execution.threads, seed)
    store = ImageStore(context.inputs["data"].path)
    pretrain = context.inputs["pretrain"]
    config = Backbone.model_validate(pretrain.read_json("params.json")["resolved"]["backbone"])
    if isinstance(context.job.config, Detector):
        torch.backends.cudnn.benchmark = False  # nearly every batch of a detector has a new shape
    given = Given(store, config, pretrain.file("backbone.safetensors"), seed, device, context.log)
    transfer = made_by(context.job.config)(context.job.config, given)
    if world() > 1:
        transfer.share_batch()
    name = f"transfer {context.label}"
    history = finetune(transfer, execution=context.execution, work=context.work, log=context.log, name=name)
    workers = workers_of(context.execution.workers, context.execution.threads, device)
    transfer.finish(workers, name)
    results, first = join(transfer.predict(workers, f"{name}: test")), rank() == 0
    leave()  # Detectron2's evaluator would wait for the other ranks
    if not first:
        return
    counts = {"n_train": transfer.train_images, "n_test": len(transfer.rows_N), "n_predictions": len(results)}
    write_csv(history.curves, context.out / "curves.csv")
    write_csv(history.timing, context.out / "timing.csv")
    write_json(results, context.out / "predictions.json")
    write_json(transfer.score(results) | counts, context.out / "metrics.json", indent=1)
    write_json({"seed": seed, **transfer.derived()}, context.out / "derived.json")


def print_transfer_score(task: TransferConfig, store: ImageStore, artifact: Artifact) -> None:
    """Print the metrics of an artifact's ``predictions.json``.

    Raises:
        MlsError: its ``metrics.json`` differs: names the first metric that differs, and both values.
    """
    results = artifact.read_json("predictions.json")
    metrics = scored(task, store, results)
    print(f"{len(results):,} predictions in {len(store.split('test')):,} images of test, percent.\n")
    for name, value in metrics.items():
        if name != "per_class":
            print(f"{name:10}{'-' if value is None else f'{value:.2f}':>7}")
    compare(metrics, artifact.file("metrics.json"))
    print(f"\nAgrees with {artifact.file('metrics.json')}.")

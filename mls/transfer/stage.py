"""The transfer stage: fine-tune on train, predict test once, score.

    python -m mls transfer detect/mls:0

Writes ``metrics.json``, ``predictions.json`` (COCO results format; ``image_id`` is the row of the data artifact),
``curves.csv`` and ``timing.csv``. The last state of the training is evaluated; none is chosen by its score.
"""

from __future__ import annotations

from mls.data.store import Store
from mls.errors import MlsError
from mls.experiment.params import Backbone
from mls.experiment.stage import Context
from mls.experiment.tasks import InstanceTransfer
from mls.files import write_csv, write_json
from mls.train.runtime import set_up
from mls.transfer.evaluate import predict, score
from mls.transfer.torchvision import build_detector
from mls.transfer.train import Samples, total_steps, train

FIRST_SEED = 1000
"""Trial 0's seed. Trials, not pretraining seeds, number the repeats of a task."""


def run(context: Context) -> None:
    """Make a transfer artifact.

    Raises:
        MlsError: the dataset holds no instances to train on or to test on.
        DeterministicError: the training diverged.
        Interrupted: a signal came; the state is saved.
    """
    task: InstanceTransfer = context.job.config
    seed = FIRST_SEED + context.job.seed
    device = set_up(context.execution, seed)
    store = Store(context.inputs["data"].path)
    pretrain = context.inputs["pretrain"]
    config = Backbone.model_validate(pretrain.read_json("params.json")["resolved"]["backbone"])
    truth = store.ground_truth("test")
    if not truth["annotations"]:
        raise MlsError("the test split of this dataset holds no instances; the task 'instance' needs boxes and masks")
    samples = Samples(store, "train")
    detector = build_detector(config, pretrain.file("backbone.safetensors"), task, len(store.classes)).to(device)
    history = train(
        detector,
        samples,
        task,
        seed=seed,
        device=device,
        execution=context.execution,
        work=context.work,
        log=context.log,
        name=f"transfer {context.label}",
    )
    rows = store.split("test")
    results = predict(
        detector, store, rows, batch_size=task.batch_size, device=device, name=f"transfer {context.label}: test"
    )
    metrics = score(truth, results)
    metrics |= {"n_train": len(samples), "n_test": len(rows), "n_predictions": len(results)}
    write_csv(history.curves, context.out / "curves.csv")
    write_csv(history.timing, context.out / "timing.csv")
    write_json(results, context.out / "predictions.json")
    write_json(metrics, context.out / "metrics.json", indent=1)
    derived = {"seed": seed, "total_steps": total_steps(task, len(samples)), "train_images": len(samples)}
    write_json(derived, context.out / "derived.json")

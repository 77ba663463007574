"""The features stage: a frozen backbone's features of a data set's labelled images, for every probe of them.

    python -m mls features linear/mls:0

Writes ``features.npy``, ``images.parquet`` and ``classes.json`` (see ``mls.probe.feature_set``), and ``timing.csv``.
"""

from __future__ import annotations

import time

from mls.config.experiment import Backbone
from mls.config.probes import Features
from mls.data.image_store import LABELLED, ImageStore
from mls.models.backbone import load_backbone
from mls.pipeline.runner import Context
from mls.probe.feature_set import write
from mls.probe.features import extract
from mls.probe.linear import check_finite
from mls.runtime.device import set_up, workers_of
from mls.runtime.errors import MlsError
from mls.runtime.files import write_csv

SEED = 1000
"""Nothing here draws random numbers; this fixes the state of every generator all the same."""


def run(context: Context) -> None:
    """Make a features artifact.

    Raises:
        MlsError: a split without images, or features that are not finite.
        Interrupted: a signal came; there is nothing to save.
    """
    config: Features = context.job.config
    device = set_up(context.execution.device, context.execution.threads, SEED)
    store = ImageStore(context.inputs["data"].path)
    pretrain = context.inputs["pretrain"]
    layout = Backbone.model_validate(pretrain.read_json("params.json")["resolved"]["backbone"])
    backbone = load_backbone(layout, pretrain.file("backbone.safetensors"))
    splits = LABELLED if config.test else ("train", "val")
    rows = {split: store.split(split) for split in splits}
    if empty := [split for split, found in rows.items() if not len(found)]:
        raise MlsError(f"probes need images of {', '.join(splits)}; this dataset has no {' and no '.join(empty)}")
    features, started = {}, time.perf_counter()
    for split, found in rows.items():
        features_ND = extract(
            backbone,
            store,
            found,
            config,
            device,
            workers=workers_of(context.execution.workers, context.execution.threads, device),
            name=f"features {context.label}: {split}",
        )
        check_finite(features_ND, split)
        features[split] = (found, features_ND)
    seconds, images = time.perf_counter() - started, sum(len(found) for found in rows.values())
    write(context.out, store, features)
    write_csv([{"images": images, "seconds": seconds, "images_per_s": images / seconds}], context.out / "timing.csv")

"""Export a finished backbone as a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads.

It holds the weights, timm's configuration, and a model card with what the weights come from and how they score.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from mls.config import catalog
from mls.config.datasets import ScenesDataset
from mls.config.experiment import Backbone
from mls.data.augment import MEAN, STD
from mls.models.backbone import feature_dims
from mls.pipeline.artifact import Artifact, open_artifact, state
from mls.pipeline.plan import Job, Plan
from mls.runtime.errors import MlsError
from mls.runtime.files import explain_full_disk, write_json
from mls.runtime.markdown import pipe_table
from mls.transfer.export import check, refuse_other_networks

CITATION = """\
@inproceedings{zhu2023mls,
  title = {Multi-Label Self-Supervised Learning with Scene Images},
  author = {Zhu, Ke and Fu, Minghao and Wu, Jianxin},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year = {2023}
}"""
"""Of the paper; CITATION.cff has it and this repository."""


def export_folder(plan: Plan, job: Job, artifact: Artifact, out: Path, log: Callable[[str], None]) -> None:
    """Write the folder, after checking that timm's network computes the same features.

    Args:
        plan: of the experiment, for the scores of finished tasks.
        job: the pretraining.
        artifact: of it.
        out: the folder; it must not be there yet.
        log: takes a line.

    Raises:
        MlsError: there is something at ``out``; timm has no such network; features differ.
    """
    if out.exists():
        raise MlsError(f"{out} is there already; remove it, or choose another name")
    config = Backbone.model_validate(artifact.read_json("params.json")["resolved"]["backbone"])
    refuse_other_networks(config, "timm")
    weights = artifact.file("backbone.safetensors")
    tensors = load_file(weights)
    check(config, weights, "timm", tensors, log)
    staged = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        with explain_full_disk(out.parent):
            staged.mkdir(parents=True)
            save_file(tensors, staged / "model.safetensors", {"format": "pt"})
            write_json(timm_config(config, artifact), staged / "config.json", indent=2)
            (staged / "README.md").write_text(card(plan, job, artifact, out.name), encoding="utf-8")
            staged.rename(out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    log(f'{out}: timm.create_model("local-dir:{out}", pretrained=True, num_classes=0)')


def timm_config(config: Backbone, artifact: Artifact) -> dict[str, Any]:
    """What timm reads of ``config.json``: the network, and how its images are made."""
    augment = artifact.read_json("params.json")["resolved"].get("augment", {})
    side = augment.get("crop", 224)
    return {
        "architecture": config.name,
        "num_classes": 0,
        "num_features": feature_dims(config)[-1],
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "interpolation": "bilinear",
            "crop_pct": 0.875,
            "mean": MEAN,
            "std": STD,
            "num_classes": 0,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def card(plan: Plan, job: Job, artifact: Artifact, name: str) -> str:
    """The model card: data, params, ids, scores with their intervals, licence and citation."""
    params, code = artifact.read_json("params.json"), artifact.manifest["made"]["code"]["revision"] or "unknown"
    label = plan.labels[job.id][0]
    scores = [["task", "metric", "value", "95 % interval over test images"], *_scores(plan, job)]
    parts = [
        "---\nlibrary_name: timm\ntags: [image-feature-extraction, self-supervised]\n---",
        f"# {name}",
        f"The backbone `{label}` of the experiment `{plan.loaded.experiment.experiment}` (pretrain artifact "
        f"`{job.id}`, code {code[:10]}), a reproduction of MLS (ICCV 2023) and its peers.",
        f'```python\nmodel = timm.create_model("local-dir:{name}", pretrained=True, num_classes=0)\n```',
        "## Data\n\n" + "\n".join(_data(plan, job)),
        "## Params\n\n```json\n" + json.dumps(params["resolved"], indent=1, sort_keys=True) + "\n```",
        "## Scores\n\n"
        + ("\n".join(pipe_table(scores)) if len(scores) > 1 else "No probe or transfer of it is finished here.")
        + "\n\nPercent; of this one pretraining, so without the variance between pretrainings.",
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _data(plan: Plan, job: Job) -> Iterator[str]:
    """A line for each data set that the pretraining read, with its licence."""
    for source in plan.inputs(job):
        section = source.config
        names = ", ".join(plan.labels[source.id])
        public = None if isinstance(section, ScenesDataset) else catalog.source(section)
        if isinstance(section, ScenesDataset):
            what = "generated scenes, without a licence of others"
        elif public:
            what = f"{public.title} ({public.page}); licence of the pictures: {public.licence}"
        else:
            what = "pictures of whoever trained it; state their licence here before you publish the weights"
        yield f"- `{names}` (data artifact `{source.id}`): {what}"
    if not job.inputs:
        yield "- none: the weights were not trained here"


def _scores(plan: Plan, job: Job) -> Iterator[list[str]]:
    """Rows of task, metric, value and interval, of every finished task of this backbone."""
    for task in (*plan.stage("probe"), *plan.stage("transfer")):
        if task.inputs.get("pretrain") != job.id or state(task.path) != "done":
            continue
        metrics = open_artifact(task.path).read_json("metrics.json")
        intervals = metrics.get("interval") or {}
        name = plan.labels[task.id][0].split("/")[0]
        for metric in shown(plan, name):
            value, ends = metrics.get(metric), intervals.get(metric)
            if value is not None:
                yield [name, metric, f"{value:.1f}", f"[{ends[0]:.1f}, {ends[1]:.1f}]" if ends else ""]


def shown(plan: Plan, task: str) -> list[str]:
    """Metrics of a task that some table of the experiment has, in their order."""
    columns = [column for table in plan.loaded.experiment.tables.values() for column in table.columns]
    return list(dict.fromkeys(c.split(".", 1)[1] for c in columns if c.split(".", 1)[0] == task))

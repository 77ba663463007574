"""The losses of 50 steps with a fixed seed, for every switch: a refactoring must not change them.

Float64, so that machines and versions agree in the digits compared. To rewrite them on purpose:
python -m tests.methods.test_pins
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mls.config.experiment import Pretrain
from mls.config.methods import Byol, Densecl, Slotcon
from mls.methods.byol import BYOL
from mls.methods.densecl import DenseCL
from mls.methods.method import Method, Pair
from mls.methods.mls import MLS
from mls.methods.moco import MoCo
from mls.methods.momentum import key_order
from mls.methods.slotcon import SlotCon
from mls.train.optimizer import build_optimizer, masked_step
from tests.methods.support import TRUE, config

FILE = Path(__file__).with_name("pinned_losses.json")
STEPS, BATCH, EPOCH = 50, 6, 10
BOXES_VB4 = torch.tensor(
    [  # the last two have nothing in common
        [[0, 0, 16, 16], [0, 0, 8, 8], [2, 4, 10, 12], [0, 8, 16, 8], [4, 4, 8, 8], [0, 0, 8, 16]],
        [[0, 0, 16, 16], [4, 2, 12, 10], [0, 0, 16, 8], [2, 0, 10, 12], [0, 6, 16, 10], [8, 0, 8, 16]],
    ]
)
FLIPS_VB = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 0, 1, 1, 1, 0]], dtype=torch.bool)


def densecl(moco: dict[str, Any] | None = None, **chosen: Any) -> tuple[type[Method[Any]], Pretrain]:
    return DenseCL, config(moco).model_copy(update={"epochs": 5, "densecl": Densecl(**chosen)})


def byol(moco: dict[str, Any] | None = None, **chosen: Any) -> tuple[type[Method[Any]], Pretrain]:
    own = Byol(**{"momentum": 0.9, "hidden_dim": 16, "projection_dim": 8, **chosen})
    return BYOL, config(moco).model_copy(update={"epochs": 5, "byol": own})


def slotcon(moco: dict[str, Any] | None = None, **chosen: Any) -> tuple[type[Method[Any]], Pretrain]:
    own = Slotcon(**{"prototypes": 6, "momentum": 0.9, "hidden_dim": 16, "projection_dim": 8, **chosen})
    return SlotCon, config(moco).model_copy(update={"epochs": 5, "slotcon": own})


VARIANTS: dict[str, tuple[type[Method[Any]], Pretrain]] = {
    "moco": (MoCo, config()),
    "moco bn_splits 2": (MoCo, config({"bn_splits": 2})),
    "moco queue_size 31": (MoCo, config({"queue_size": 31})),
    "moco temperature 0.5": (MoCo, config({"temperature": 0.5})),
    "moco momentum 0.5": (MoCo, config({"momentum": 0.5})),
    "moco projection_dim 5": (MoCo, config({"projection_dim": 5})),
    "mls": (MLS, config()),
    "mls topk 1": (MLS, config(topk=1)),
    "mls weight 3": (MLS, config(weight=3.0)),
    "mls bce_pos": (MLS, config(terms="bce_pos")),
    "mls knn": (MLS, config(terms="knn")),
    "mls none": (MLS, config(terms="none")),
    "mls labels in projection": (MLS, config(label_space="projection")),
    "mls logits in backbone": (MLS, config(logit_space="backbone")),
    "mls sum": (MLS, config(reduction="sum")),
    "mls balanced": (MLS, config(reduction="balanced")),
    "mls positives": (MLS, config(reduction="positives")),
    "mls prior bias": (MLS, config(bias="prior", reduction="positives")),
    "mls centred": (MLS, config(centre=True)),
    "mls enqueue before": (MLS, config(enqueue="before")),
    "mls enqueue split": (MLS, config(enqueue="split")),
    "mls warm-up and ramp": (MLS, config(warmup_epochs=1.0, ramp_epochs=2.0)),
    "mls bn_splits 3": (MLS, config({"bn_splits": 3})),
    "mls lars": (
        MLS,
        config().model_copy(update={"optimizer": Pretrain().optimizer.model_copy(update={"name": "lars"})}),
    ),
    "mls adamw": (
        MLS,
        config().model_copy(
            update={"optimizer": Pretrain().optimizer.model_copy(update={"name": "adamw", "lr": 1e-3})}
        ),
    ),
    "densecl": densecl(),
    "densecl weight 0.9": densecl(weight=0.9),
    "densecl bn_splits 2": densecl({"bn_splits": 2}),
    "densecl queue_size 31": densecl({"queue_size": 31}),
    "densecl temperature 0.5": densecl({"temperature": 0.5}),
    "densecl momentum 0.5": densecl({"momentum": 0.5}),
    "densecl projection_dim 5": densecl({"projection_dim": 5}),
    "byol": byol(),
    "byol bn_splits 2": byol({"bn_splits": 2}),
    "byol momentum 0.5": byol(momentum=0.5),
    "byol hidden_dim 12": byol(hidden_dim=12),
    "byol projection_dim 5": byol(projection_dim=5),
    "slotcon": slotcon(),
    "slotcon bn_splits 2": slotcon({"bn_splits": 2}),
    "slotcon prototypes 4": slotcon(prototypes=4),
    "slotcon momentum 0.5": slotcon(momentum=0.5),
    "slotcon hidden_dim 12": slotcon(hidden_dim=12),
    "slotcon projection_dim 5": slotcon(projection_dim=5),
    "slotcon student_temperature 0.3": slotcon(student_temperature=0.3),
    "slotcon teacher_temperature 0.2": slotcon(teacher_temperature=0.2),
    "slotcon slot_temperature 0.5": slotcon(slot_temperature=0.5),
    "slotcon centre_momentum 0.5": slotcon(centre_momentum=0.5),
    "slotcon weight 0.2": slotcon(weight=0.2),
}


def losses_of(kind: type[Method[Any]], chosen: Pretrain) -> list[float]:
    """The loss of each step, on images that repeat every 10 steps with new noise."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        method = kind(chosen).train()
        generator = torch.Generator().manual_seed(1)
        side = 16 if issubclass(kind, MoCo) else 32  # maps of 1 and of 2 x 2 cells
        batch = BATCH * chosen.moco.bn_splits  # statistics of two or three images amplify a machine's last bit
        images = torch.randn(EPOCH, batch, 3, side, side, generator=generator)
        parameters = [p for p in method.parameters() if p.requires_grad]
        lr = min(chosen.optimizer.lr, 0.01)  # at 0.03 some are chaotic: machines then differ in the third digit
        optimizer = build_optimizer(parameters, chosen.optimizer.model_copy(update={"lr": lr}))
        found = []
        for step in range(STEPS):
            query, key = (images[step % EPOCH] + 0.3 * torch.randn(images[0].shape, generator=generator) for _ in "qk")
            order = key_order(0, step, batch) if chosen.moco.bn_splits > 1 else None
            rows = torch.arange(batch)
            optimizer.zero_grad()
            boxes_VB4, flips_VB = (given.repeat_interleave(batch // BATCH, 1) for given in (BOXES_VB4, FLIPS_VB))
            loss = method(Pair(query, key, rows, boxes_VB4, flips_VB, order, step / EPOCH))["loss"]
            loss.backward()
            masked_step(optimizer, TRUE)
            method.finish_step(TRUE)
            found.append(loss.item())
        return found
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", VARIANTS)
def test_fifty_steps_repeat(name: str) -> None:
    pinned: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    assert losses_of(*VARIANTS[name]) == pytest.approx(pinned[name], rel=1e-6)


def test_every_switch_matters() -> None:
    """No two variants give the same numbers, except the one that must equal MoCo-v2."""
    pinned: dict[str, list[float]] = json.loads(FILE.read_text(encoding="utf-8"))
    assert pinned.keys() == VARIANTS.keys()
    assert pinned["mls none"] == pinned["moco"]
    others = [tuple(values) for name, values in pinned.items() if name != "mls none"]
    assert len(set(others)) == len(others)


if __name__ == "__main__":
    pins = {name: [float(f"{v:.9g}") for v in losses_of(*variant)] for name, variant in VARIANTS.items()}
    FILE.write_text("{\n" + ",\n".join(f' "{k}": {json.dumps(v)}' for k, v in pins.items()) + "\n}\n", encoding="utf-8")

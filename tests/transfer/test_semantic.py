"""Segmentation starts from the pretrained weights, trains all of itself, resumes bit for bit, and learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mls.config.experiment import Backbone, Execution
from mls.data.image_store import IGNORE
from mls.models.backbone import build_backbone, save_backbone
from mls.runtime.errors import DeterministicError, Interrupted, MlsError
from mls.transfer.instances import decode_mask
from mls.transfer.interface import Given
from mls.transfer.semantic import HEADS, SemanticTraining, pixels_to_coco
from tests.transfer.semantic_support import CLASSES, masked_record, masked_store, painted, tiny_task, write_masked
from tests.transfer.support import assert_equal, live, make_record, stopped, terminate, write_records


@pytest.fixture
def masked(given: Given, tmp_path: Path) -> Given:
    """Seven train images and three test images with index masks."""
    return replace(given, store=masked_store(tmp_path / "masked"))


def test_weights_are_loaded_and_proved(masked: Given, log: list[str]) -> None:
    torch.manual_seed(99)  # another state than the one the weights were drawn from
    training = SemanticTraining(tiny_task(), masked)
    stored = load_file(masked.weights)
    body = training.model.backbone.state_dict()
    assert set(body) == set(stored) and all(torch.equal(body[key], stored[key]) for key in stored)
    assert log[0] == f"backbone loaded: all of {len(stored)} tensors; dilated to output stride 4"
    assert "features of one image are equal in both backbones, C2 to C5" in log[1]
    assert training.derived() == {"total_steps": 6, "train_images": 7, "classes": 4}
    assert training.rows_N.tolist() == [7, 8, 9]


def test_a_backbone_that_was_dilated_wrongly_is_refused(masked: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(backbone: Any, output_stride: int, first_stride: int) -> None:
        backbone.layer4[0].conv1.stride = backbone.layer4[0].downsample[0].stride = (1, 1)

    monkeypatch.setattr("mls.transfer.semantic.dilate", careless)
    with pytest.raises(DeterministicError, match="gives different features: C5"):
        SemanticTraining(tiny_task(output_stride=8), masked)


def test_impossible_trainings_are_refused(masked: Given, tmp_path: Path) -> None:
    with pytest.raises(MlsError, match="does not fit resnet18"):
        SemanticTraining(tiny_task(), replace(masked, config=Backbone(name="resnet18", width=0.25, stem="small")))
    with pytest.raises(MlsError, match=r"output_stride 32: .* 2, 4, 8, 16 pixels"):
        SemanticTraining(tiny_task(output_stride=32), masked)
    no_test = write_masked(tmp_path / "a", [masked_record("train", painted(0))])
    with pytest.raises(MlsError, match="split 'test' of this dataset is empty"):
        SemanticTraining(tiny_task(), replace(masked, store=no_test))
    no_train = write_masked(tmp_path / "b", [masked_record("test", painted(0))])
    with pytest.raises(MlsError, match=r"split 'train\+val' of this dataset is empty"):
        SemanticTraining(tiny_task(train_on="train+val"), replace(masked, store=no_train))
    blind = write_records(tmp_path / "c", [make_record("train", 0, instances=0), make_record("test", 1)])
    with pytest.raises(MlsError, match="split 'train' of this dataset holds no masks"):
        SemanticTraining(tiny_task(), replace(masked, store=blind))
    state = load_file(masked.weights)
    state["layer2.0.conv1.weight"].fill_(float("nan"))
    save_file(state, masked.weights)
    with pytest.raises(DeterministicError, match=r"not finite \(C3\)"):
        SemanticTraining(tiny_task(), masked)


@pytest.mark.parametrize(
    ("name", "head"), [("resnet18", "psp"), ("resnet50", "psp"), ("resnet50", "psa"), ("resnet18", "fcn")]
)
def test_everything_is_trained_and_decayed(masked: Given, name: Any, head: str) -> None:
    config = Backbone(name=name, width=0.125, stem="imagenet")
    torch.manual_seed(0)
    save_backbone(build_backbone(config), masked.weights)
    training = SemanticTraining(tiny_task(head=head, dropout=0.0, batch_size=4), replace(masked, config=config))
    training.model.train()
    torch.stack(list(training.losses(next(training.batches(range(1), 1))).values())).sum().backward()
    parts = {name.split(".")[1] if name.startswith("backbone") else name.split(".")[0] for name in names_of(training)}
    own = {"psp": {"pooled", "aux"}, "psa": {"collect", "distribute", "projected", "aux"}, "fcn": set()}[head]
    assert parts == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", *own, "head"}
    for key, parameter in training.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
    (group,) = training.optimizer.param_groups
    assert len(group["params"]) == len(names_of(training))
    assert (group["weight_decay"], group["momentum"]) == (5e-4, 0.9)


def test_the_auxiliary_loss_trains_only_up_to_the_third_stage(masked: Given) -> None:
    training = SemanticTraining(tiny_task(), masked)
    training.model.train()
    training.losses(next(training.batches(range(1), 1)))["loss_aux"].backward()
    body = training.model.backbone
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for p in [*body.conv1.parameters(), *body.layer3.parameters()]
    )
    later = [name for name, p in training.model.named_parameters() if p.grad is None]
    assert {name.partition(".")[0] for name in later} == {"backbone", "pooled", "head"}
    assert all(p.grad is None for p in body.layer4.parameters())


def names_of(training: SemanticTraining) -> list[str]:
    return [name for name, _ in training.model.named_parameters()]


def test_losses_are_means_over_all_pixels(masked: Given) -> None:
    """Ignored pixels, and those beyond the image, count in the mean and add nothing."""
    training = SemanticTraining(tiny_task(dropout=0.0), masked)
    training.model.train()
    batch = [(torch.full((3, 20, 32), 50, dtype=torch.uint8), torch.zeros(20, 32, dtype=torch.uint8))]
    batch.append((torch.full((3, 24, 30), 200, dtype=torch.uint8), torch.full((24, 30), 2, dtype=torch.uint8)))
    batch[0][1][:5] = IGNORE
    seen: list[Tensor] = []
    training.model.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    logits: list[dict[str, Tensor]] = []
    training.model.register_forward_hook(lambda net, args, out: logits.append(out))
    losses = training.losses(batch)
    assert seen[0].shape == (2, 3, 24, 32)
    assert not seen[0][0, :, 20:].any() and not seen[0][1, :, :, 30:].any()  # the mean colour
    assert seen[0][0, 0, 0, 0] == pytest.approx((50 / 255 - 0.485) / 0.229)
    for name, head, weight in (("loss_seg", "out", 1.0), ("loss_aux", "aux", 0.4)):
        log_p = F.log_softmax(logits[0][head].detach(), dim=1)
        total = -(log_p[0, 0, 5:20].sum() + log_p[1, 2, :, :30].sum())
        assert float(losses[name].detach()) == pytest.approx(weight * float(total) / (2 * 24 * 32), rel=1e-5)
    everything = [(image, torch.full_like(mask, IGNORE)) for image, mask in batch]
    assert [float(loss.detach()) for loss in training.losses(everything).values()] == [0, 0]


def test_learning_rate_is_polynomial(masked: Given) -> None:
    training = SemanticTraining(tiny_task(iterations=40_000, lr=0.01), masked)
    assert training.learning_rate(0) == pytest.approx(0.01)
    assert training.learning_rate(20_000) == pytest.approx(1e-4 + 0.0099 * 0.5**0.9)
    assert training.learning_rate(30_000) == pytest.approx(1e-4 + 0.0099 * 0.25**0.9)
    assert training.learning_rate(39_999) == pytest.approx(1e-4, rel=0.01)
    rates = [training.learning_rate(step) for step in range(0, 40_000, 1000)]
    assert rates == sorted(rates, reverse=True)


def test_learning_rate_may_drop_instead(masked: Given) -> None:
    training = SemanticTraining(tiny_task(head="fcn", iterations=90_000, lr=0.01, steps=[0.7, 0.9]), masked)
    rates = {step: training.learning_rate(step) for step in (0, 62_999, 63_000, 80_999, 81_000, 89_999)}
    assert list(rates.values()) == pytest.approx([0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize("head", HEADS)
def test_one_window_is_the_whole_image(masked: Given, head: str) -> None:
    whole = SemanticTraining(tiny_task(head=head), masked)
    windows = SemanticTraining(tiny_task(head=head, inference="slide", crop=[32, 48], stride=[32, 48]), masked)
    windows.model.load_state_dict(whole.model.state_dict())
    many = SemanticTraining(tiny_task(head=head, inference="slide"), masked)
    many.model.load_state_dict(whole.model.state_dict())
    image = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        expected, one, several = (each.logits(image) for each in (eval_mode(t) for t in (whole, windows, many)))
    torch.testing.assert_close(one, expected)
    assert several.shape == expected.shape and not torch.allclose(several, expected)


def eval_mode(training: SemanticTraining) -> SemanticTraining:
    training.model.eval()
    return training


@pytest.mark.parametrize(
    ("inference", "head"), [("whole", "psp"), ("slide", "psp"), ("whole", "psa"), ("slide", "psa")]
)
def test_predictions_have_one_class_for_each_pixel(masked: Given, inference: str, head: str) -> None:
    training = SemanticTraining(tiny_task(head=head, inference=inference), masked)
    results = training.predict(2, "test")
    assert results == training.predict(1, "test")
    keys = [(result["image_id"], result["category_id"]) for result in results]
    assert keys == sorted(set(keys)) and {row for row, _ in keys} == {7, 8, 9}
    assert set(training.score(results)["per_class"]) == set(CLASSES)
    for row in (7, 8, 9):
        shapes = [decode_mask(result["segmentation"], 32, 48) for result in results if result["image_id"] == row]
        assert np.array_equal(np.sum(shapes, axis=0), np.ones((32, 48)))


def test_truth_as_prediction_is_perfect(given: Given) -> None:
    """Of masks that are drawn from instances: background is a class."""
    training = SemanticTraining(tiny_task(), given)
    truth = [result for row in training.truth.rows for result in pixels_to_coco(row, training.truth.of(row).numpy())]
    metrics = training.score(truth)
    assert [metrics[name] for name in ("mIoU", "mAcc", "aAcc")] == [100, 100, 100]
    assert list(metrics["per_class"]) == ["red", "green", "blue", "background"]
    assert training.derived()["classes"] == 4
    nothing = training.score([])
    assert [nothing[name] for name in ("mIoU", "mAcc", "aAcc")] == [0, 0, 0]


@pytest.mark.parametrize("head", HEADS)
def test_resumed_equals_uninterrupted(
    masked: Given, execution: Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    monkeypatch.setattr("mls.train.finetune.CURVE_EVERY", 2)
    task = tiny_task(head=head, dropout=0.5)  # drawn from torch's generator
    whole, history = live(SemanticTraining, task, masked, execution, tmp_path / "whole")
    with stopped(SemanticTraining, 2, terminate), pytest.raises(Interrupted):
        live(SemanticTraining, task, masked, execution, tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint-000000003.pt"]
    more = execution.model_copy(update={"workers": 3})
    resumed, resumed_history = live(SemanticTraining, task, masked, more, tmp_path / "parts")
    assert [row["step"] for row in history.curves] == [0, 2, 4, 5]
    assert resumed_history.curves == history.curves
    assert_equal(resumed, whole)
    start = load_file(masked.weights)
    assert not torch.equal(whole.model.backbone.conv1.weight, start["conv1.weight"])


@pytest.mark.parametrize("head", HEADS)
def test_eight_images_are_learned_by_heart(given: Given, execution: Execution, tmp_path: Path, head: str) -> None:
    """mIoU above 50 on the images that it was trained on, after a few hundred steps."""
    task = tiny_task(
        head=head, iterations=240, batch_size=4, lr=0.03, crop=[32, 48], scale=[1.0, 1.25], head_channels=16
    )
    learner = replace(given, store=masked_store(tmp_path / "eight", train=8, test=8, same=True))
    training = SemanticTraining(task, learner)
    assert training.score(training.predict(1, "test"))["mIoU"] < 30
    training, _ = live(SemanticTraining, task, learner, execution, tmp_path / "work")
    metrics = training.score(training.predict(1, "test"))
    assert metrics["mIoU"] > 50 and metrics["aAcc"] > 70, metrics

"""Losses, schedules, first weights and groups of parameters, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mls.probe.classifier import Classifier, learning_rate, loss_of, make_optimizer
from tests.probe.finetune_support import (
    SEED,
    make_backbone,
    make_task,
)


def test_multi_label_loss_by_hand() -> None:
    generator = torch.Generator().manual_seed(1)
    logits_BC = 5 * torch.randn(6, 4, generator=generator)
    truth_BC = torch.rand(6, 4, generator=generator) < 0.5
    kept_BC = truth_BC | (torch.rand(6, 4, generator=generator) < 0.6)
    assert 0 < (~kept_BC).sum() < 12
    terms = []
    for logit, truth, kept in zip(*(v.flatten().tolist() for v in (logits_BC, truth_BC, kept_BC)), strict=True):
        if kept:
            terms.append(math.log1p(math.exp(-logit)) if truth else math.log1p(math.exp(logit)))
    assert float(loss_of(logits_BC, truth_BC, kept_BC, True)) == pytest.approx(np.mean(terms), rel=1e-6)
    everything = torch.ones_like(kept_BC)
    plain = torch.nn.BCEWithLogitsLoss()(logits_BC, truth_BC.float())
    torch.testing.assert_close(loss_of(logits_BC, truth_BC, everything, True), plain)


def test_ignored_entries_have_no_gradient() -> None:
    logits_BC = torch.randn(3, 2, requires_grad=True)
    kept_BC = torch.tensor([[True, False], [True, True], [False, True]])
    loss_of(logits_BC, torch.zeros(3, 2, dtype=torch.bool), kept_BC, True).backward()
    assert logits_BC.grad is not None and torch.equal(logits_BC.grad.bool(), kept_BC)
    nothing = loss_of(torch.randn(3, 2), torch.zeros(3, 2, dtype=torch.bool), torch.zeros(3, 2).bool(), True)
    assert float(nothing) == 0


def test_single_label_loss_by_hand() -> None:
    logits_BC = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    truth_BC = torch.tensor([[False, True, False], [True, False, False]])
    terms = [
        math.log(sum(map(math.exp, row))) - row[answer] for row, answer in zip(logits_BC.tolist(), (1, 0), strict=True)
    ]
    value = loss_of(logits_BC, truth_BC, torch.ones(2, 3).bool(), False)
    assert float(value) == pytest.approx(np.mean(terms), rel=1e-6)


def test_the_cosine_schedule_warms_up_and_falls() -> None:
    task = make_task(lr=2.0, epochs=10, warmup_epochs=1.0)
    rates = [learning_rate(task, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([2 * (step + 1) / 11 for step in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert learning_rate(make_task(lr=2.0), 0, 18) == 2.0
    assert learning_rate(make_task(lr=2.0, epochs=1, warmup_epochs=0.9), 0, 1) == 1.0  # all steps there are


def test_the_step_schedule_divides_by_ten() -> None:
    task = make_task("sgd", lr=30.0, epochs=100)
    rates = [learning_rate(task, step, 500) for step in range(500)]
    assert rates == pytest.approx([30.0] * 300 + [3.0] * 100 + [0.3] * 100)
    slow = make_task("sgd", lr=1.0, epochs=10, warmup_epochs=6.0, steps=[0.5])
    assert learning_rate(slow, 5, 10) == pytest.approx(0.1 * 6 / 7)  # a drop within the warm-up counts too


def test_first_weights_follow_from_the_seed() -> None:
    heads: list[torch.nn.Linear] = []
    for kind in ("finetune", "sgd"):
        made: list[torch.nn.Linear] = []
        for seed in (1, 1, 2):
            torch.manual_seed(len(heads) + len(made))  # of no account
            made.append(Classifier(make_backbone(), 500, make_task(kind), seed).fc)
        assert torch.equal(made[0].weight, made[1].weight)
        assert not torch.equal(made[0].weight, made[2].weight)
        heads.append(made[0])
    tuned, frozen = heads
    assert tuned.weight.shape == (500, 64)
    for parameter in (tuned.weight, tuned.bias):
        assert parameter.abs().max() <= 1 / 8
        assert float(parameter.detach().std()) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.1)
    assert not frozen.bias.any()
    assert float(frozen.weight.detach().std()) == pytest.approx(0.01, rel=0.05)


def test_optimizer_groups() -> None:
    task = make_task(classifier_lr=10.0, nesterov=True, weight_decay=1e-3)
    model = Classifier(make_backbone(), 3, task, SEED)
    optimizer = make_optimizer(model, task)
    assert [group["times"] for group in optimizer.param_groups] == [10.0, 1.0]
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert all(group["weight_decay"] == 1e-3 and group["nesterov"] for group in optimizer.param_groups)
    alone = make_optimizer(frozen := Classifier(make_backbone(), 3, make_task("sgd"), SEED), make_task("sgd"))
    assert [id(p) for group in alone.param_groups for p in group["params"]] == [id(p) for p in frozen.fc.parameters()]

"""L2-regularised logistic regression of many classes at once, or softmax regression: the solver of `mls.probe.linear`.

    problem = Logistic(standard_ND, truth_NC, counted_NC, exclusive=False)
    solution = problem.fit(strength=1.0)                       # float64 weights (C, D) and biases (C,)
    stronger = problem.fit(strength=10.0, start=solution)

The objective of each class, as scikit-learn defines C [LogisticRegression]: the mean over its n images of the logistic
loss, plus w.w / (2 C n). The bias is not penalised. In softmax regression (``exclusive``) the classes share one
objective: the mean cross-entropy, and the sum of their penalties.

All classes take a step together, so that the work is two products of the features with a matrix. The step is L-BFGS's
[Nocedal and Wright, Numerical Optimization, 2nd ed., algorithm 7.4], with a line search and a history per class. Its
first guess of the inverse Hessian is not a multiple of the identity but ``Curvature``, which knows how the features
correlate: with it, a few dozen steps replace thousands. A class that has converged leaves the products.

Features are float32 and products with them too, in blocks whose sums are float64, as is everything else. Results repeat
bit by bit with an equal number of threads on a CPU.

Shape legend: N images, D features, P = D + 1 (the last is the bias), C classes, A of them that still move, B images of
a block, R directions of the features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mls.probe.feature_set import blocks

TOLERANCE = 1e-9
"""A class has converged when g.H.g is at most this share of its objective: g is the gradient, H `Curvature`'s or
L-BFGS's inverse Hessian, whichever gives more. Half of it estimates how far the objective is above its minimum."""
MAX_ITERATIONS = 1000
"""Limit of steps, per class and strength."""
HISTORY = 10
"""Steps that L-BFGS remembers."""
TRIALS = 30
"""Limit of a line search's trials."""


@dataclass(frozen=True)
class Solution:
    """The minimum of each class, and how it was found."""

    weight_CD: Tensor
    bias_C: Tensor
    objective_C: Tensor
    """Mean loss and penalty; of softmax regression the whole objective, for each class."""
    iterations_C: Tensor
    converged_C: Tensor


class Curvature:
    """An estimate of each class's Hessian whose inverse is cheap: its mean p (1 - p) times the features' covariance.

    Logistic regression's Hessian is the mean of p (1 - p) x x', plus the penalty; the estimate replaces p (1 - p) by
    its mean. Covariance and penalty share eigenvectors, which are found once.
    """

    def __init__(self, standard_ND: Tensor) -> None:
        """Find the eigenvectors of the smaller of X'X (D, D) and XX' (N, N)."""
        images, dims = standard_ND.shape
        self.whole = images >= dims
        if self.whole:
            gram = sum_over(blocks(images, dims), lambda rows: standard_ND[rows].T @ standard_ND[rows])
            self.size_R, self.direction_DR = torch.linalg.eigh(gram / images)
            self.size_R = self.size_R.clamp(min=0)
            return
        size_N, vector_NN = torch.linalg.eigh((standard_ND @ standard_ND.T).double() / images)
        kept = size_N > 1e-6 * size_N[-1]  # the others are rounding
        self.size_R = size_N[kept]
        direction_DR = standard_ND.T.double() @ vector_NN[:, kept]
        self.direction_DR = direction_DR / direction_DR.norm(dim=0)

    def solve(self, gradient_AP: Tensor, spread_A: Tensor, penalty_A: Tensor) -> Tensor:
        """Return the inverse Hessian times a gradient, (A, P), from each class's mean p (1 - p) and penalty."""
        of_weights_AD, penalty_A1 = gradient_AP[:, :-1], penalty_A[:, None]
        inverse_AR = 1 / (spread_A[:, None] * self.size_R + penalty_A1)
        if self.whole:
            solved_AD = (of_weights_AD @ self.direction_DR * inverse_AR) @ self.direction_DR.T
        else:  # where no feature varies, only the penalty curves
            along_AR = of_weights_AD @ self.direction_DR * (inverse_AR - 1 / penalty_A1)
            solved_AD = of_weights_AD / penalty_A1 + along_AR @ self.direction_DR.T
        return torch.cat([solved_AD, gradient_AP[:, -1:] / spread_A[:, None]], dim=1)


class Logistic:
    """The regressions of one set of images, for any strength."""

    def __init__(self, standard_ND: Tensor, truth_NC: Tensor, counted_NC: Tensor, *, exclusive: bool = False) -> None:
        """Prepare.

        Args:
            standard_ND: standardised features, float32, on the device that works.
            truth_NC: bool; each class has images with and without it among those that count.
            counted_NC: bool; an image has no weight in the fit of a class for which it does not count.
            exclusive: softmax regression: each image has exactly one class, and all count.
        """
        self.standard_ND, self.exclusive = standard_ND, exclusive
        # -1 for a positive, 1 for a negative, 0 if it does not count: the sign by which a logit costs
        self.sign_NC = (1 - 2 * truth_NC.to(torch.int8)) * counted_NC.to(torch.int8)
        self.count_C = counted_NC.sum(0).double()
        self.curvature = Curvature(standard_ND)

    def start(self) -> Tensor:
        """Return the parameters, (C, P), of a model that knows only how frequent each class is."""
        positive_C = (self.sign_NC == -1).sum(0).double()
        start_CP = self.count_C.new_zeros(len(positive_C), self.standard_ND.shape[1] + 1)
        start_CP[:, -1] = (positive_C / (1 if self.exclusive else self.count_C - positive_C)).log()
        return start_CP

    def fit(
        self, strength: float, start: Solution | None = None, told: Callable[[int], None] = lambda converged: None
    ) -> Solution:
        """Minimise.

        Args:
            strength: C.
            start: a solution to start from; by default all weights are 0.
            told: called after each step with the number of classes that it finished.
        """
        at_CP = self.start() if start is None else torch.cat([start.weight_CD, start.bias_C[:, None]], dim=1)
        at_CP = at_CP.float().double()  # so that the logits are those of exactly these weights
        classes = len(at_CP)
        objective_C, iterations_C = self.count_C.new_zeros(classes), torch.zeros(classes, dtype=torch.int64)
        converged_C = torch.zeros(classes, dtype=torch.bool)
        left = torch.arange(classes, device=at_CP.device)
        descent = Descent(self, at_CP, strength)
        for iteration in range(MAX_ITERATIONS + 1):
            direction_AP, done_A = descent.direction()
            done_A = done_A & ~descent.stuck_A
            stopped_A = done_A | descent.stuck_A | (iteration == MAX_ITERATIONS)
            if stopped_A.any():
                gone = left[stopped_A]
                at_CP[gone], objective_C[gone] = descent.at_AP[stopped_A], descent.value_A[stopped_A]
                iterations_C[gone.cpu()], converged_C[gone.cpu()] = iteration, done_A[stopped_A].cpu()
                told(len(gone))
                left = left[~stopped_A]
                if not len(left):
                    break
                descent.keep(~stopped_A)
                direction_AP = direction_AP[~stopped_A]
            descent.step(direction_AP)
        return Solution(at_CP[:, :-1], at_CP[:, -1], objective_C, iterations_C, converged_C)

    def logits(self, parameters_AP: Tensor) -> Tensor:
        """Return features times parameters, float64 (N, A)."""
        out_NA = parameters_AP.new_empty(len(self.standard_ND), len(parameters_AP))
        weight_DA = parameters_AP[:, :-1].T.float().contiguous()
        for rows in blocks(*self.standard_ND.shape):
            out_NA[rows] = self.standard_ND[rows] @ weight_DA
        return out_NA.add_(parameters_AP[:, -1])


class Descent:
    """L-BFGS of the classes that still move; see `Logistic.fit`."""

    def __init__(self, problem: Logistic, at_CP: Tensor, strength: float) -> None:
        self.problem, self.at_AP = problem, at_CP
        self.sign_NA, self.count_A = problem.sign_NC, problem.count_C
        self.penalty_A = 1 / (strength * problem.count_C)
        self.logit_NA = problem.logits(at_CP)
        self.residual_NA = torch.empty(self.logit_NA.shape, device=at_CP.device)  # dloss/dlogit
        self.stuck_A = torch.zeros(len(at_CP), dtype=torch.bool, device=at_CP.device)
        no_move_NA = torch.zeros(1, 1, device=at_CP.device).expand_as(self.logit_NA)
        self.value_A, _, self.spread_A = self.along(no_move_NA, torch.zeros_like(at_CP), self.penalty_A * 0)
        self.gradient_AP = self.gradient()
        self.moves: list[tuple[Tensor, Tensor, Tensor]] = []

    def dot(self, a_AP: Tensor, b_AP: Tensor) -> Tensor:
        """Return each class's inner product, (A,); in softmax regression all have that of the whole."""
        return self.shared((a_AP * b_AP).sum(1))

    def shared(self, values_A: Tensor) -> Tensor:
        """Return values of the classes' objectives, of which softmax regression has one."""
        return values_A.sum().expand_as(values_A) if self.problem.exclusive else values_A

    def direction(self) -> tuple[Tensor, Tensor]:
        """Return L-BFGS's step, (A, P), and which classes have converged."""
        out_AP, shares = self.gradient_AP.clone(), []
        for move_AP, change_AP, inverse_A in reversed(self.moves):
            shares.append(inverse_A * self.dot(move_AP, out_AP))
            out_AP -= shares[-1][:, None] * change_AP
        out_AP = self.problem.curvature.solve(out_AP, self.spread_A, self.penalty_A)
        for (move_AP, change_AP, inverse_A), share_A in zip(self.moves, reversed(shares), strict=True):
            out_AP += (share_A - inverse_A * self.dot(change_AP, out_AP))[:, None] * move_AP
        done_A = self.dot(out_AP, self.gradient_AP) <= TOLERANCE * self.value_A
        if done_A.any():
            plain_AP = self.problem.curvature.solve(self.gradient_AP, self.spread_A, self.penalty_A)
            done_A &= self.dot(plain_AP, self.gradient_AP) <= TOLERANCE * self.value_A
        return -out_AP, done_A

    def step(self, direction_AP: Tensor) -> None:
        """Move each class along its direction, by a line search."""
        direction_AP = direction_AP.float().double()
        logit_NA = self.problem.logits(direction_AP)
        length_A, self.value_A, self.stuck_A = self.search(logit_NA, direction_AP)
        self.logit_NA.addcmul_(logit_NA, length_A)
        move_AP, before_AP = length_A[:, None] * direction_AP, self.gradient_AP
        self.at_AP = self.at_AP + move_AP
        self.gradient_AP = self.gradient()
        change_AP = self.gradient_AP - before_AP
        curved_A = self.dot(move_AP, change_AP)
        inverse_A = torch.where(curved_A > 0, 1 / curved_A, 0)  # a pair without curvature counts for nothing
        self.moves = [*self.moves[1 - HISTORY :], (move_AP, change_AP, inverse_A)]

    def search(self, move_NA: Tensor, direction_AP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each class's length of step, its objective there, and whether none was found (rounding is all that
        is left of the slope): then 0.

        The objective is convex, so its slope brackets the minimum. A step may stop where the slope has fallen to 0.9
        and the objective is lower than before.
        """
        slope_A = self.dot(self.gradient_AP, direction_AP)
        low_A, high_A, length_A = (
            torch.zeros_like(slope_A),
            torch.full_like(slope_A, torch.inf),
            torch.ones_like(slope_A),
        )
        for _ in range(TRIALS):
            value_A, there_A, _ = self.along(move_NA, direction_AP, length_A)
            lower_A = (there_A <= 0) | (value_A <= self.value_A + 1e-4 * length_A * slope_A)
            fine_A = lower_A & (there_A.abs() <= 0.9 * slope_A.abs())
            if fine_A.all():
                break
            far_A = there_A > 0
            high_A = torch.where(far_A & ~fine_A, length_A, high_A)
            low_A = torch.where(~far_A & ~fine_A, length_A, low_A)
            secant_A = length_A * slope_A / (slope_A - there_A)
            width_A = high_A - low_A
            inside_A = secant_A.clamp(low_A + 0.1 * width_A, high_A - 0.1 * width_A)
            outside_A = secant_A.nan_to_num(torch.inf).clamp(2 * length_A, 10 * length_A)
            length_A = torch.where(fine_A, length_A, torch.where(high_A.isinf(), outside_A, inside_A))
        return torch.where(fine_A, length_A, 0), torch.where(fine_A, value_A, self.value_A), ~fine_A

    def along(self, move_NA: Tensor, direction_AP: Tensor, length_A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return objective, slope and mean p (1 - p) after a move; leave each image's dloss/dlogit in `residual_NA`."""

        def of_rows(rows: slice) -> Tensor:
            moved_BA = move_NA[rows].double()
            logit_BA, sign_BA = torch.addcmul(self.logit_NA[rows], moved_BA, length_A), self.sign_NA[rows].double()
            if self.problem.exclusive:
                share_BA, true_BA = logit_BA.softmax(1), sign_BA < 0
                loss_A = torch.where(true_BA, logit_BA.logsumexp(1, keepdim=True) - logit_BA, 0).sum(0)
                slope_BA = share_BA - true_BA.double()
            else:
                cost_BA = sign_BA * logit_BA
                share_BA = torch.sigmoid(cost_BA)
                loss_A = F.softplus(cost_BA).sum(0)
                slope_BA = sign_BA * share_BA
            self.residual_NA[rows] = slope_BA
            return torch.stack([loss_A, (slope_BA * moved_BA).sum(0), share_BA.sum(0) - share_BA.square().sum(0)])

        loss_A, slope_A, spread_A = sum_over(blocks(*self.problem.standard_ND.shape), of_rows)
        if not self.problem.exclusive:  # the pairs that do not count have sign 0, so loss log 2 and p 1/2
            rest_A = len(self.logit_NA) - self.count_A
            loss_A, spread_A = loss_A - rest_A * math.log(2), spread_A - rest_A / 4
        loss_A, slope_A, spread_A = loss_A / self.count_A, slope_A / self.count_A, spread_A / self.count_A
        at_AD = self.at_AP[:, :-1] + length_A[:, None] * direction_AP[:, :-1]
        value_A = self.shared(loss_A + self.penalty_A * at_AD.square().sum(1) / 2)
        slope_A = self.shared(slope_A + self.penalty_A * (at_AD * direction_AP[:, :-1]).sum(1))
        return value_A, slope_A, spread_A

    def gradient(self) -> Tensor:
        """Return the gradient, (A, P), from `residual_NA`."""
        standard_ND, residual_NA = self.problem.standard_ND, self.residual_NA
        of_weights_AD = sum_over(blocks(*standard_ND.shape), lambda rows: residual_NA[rows].T @ standard_ND[rows])
        of_bias_A = residual_NA.sum(0, dtype=torch.float64)
        mean_AP = torch.cat([of_weights_AD, of_bias_A[:, None]], dim=1) / self.count_A[:, None]
        mean_AP[:, :-1] += self.penalty_A[:, None] * self.at_AP[:, :-1]
        return mean_AP

    def keep(self, stays_A: Tensor) -> None:
        """Drop the other classes."""
        for name in ("at_AP", "count_A", "penalty_A", "stuck_A", "value_A", "spread_A", "gradient_AP"):
            setattr(self, name, getattr(self, name)[stays_A])
        for name in ("sign_NA", "logit_NA", "residual_NA"):
            setattr(self, name, getattr(self, name)[:, stays_A])
        self.moves = [(move[stays_A], change[stays_A], inverse[stays_A]) for move, change, inverse in self.moves]


def sum_over(parts: Iterator[slice], of_rows: Callable[[slice], Tensor]) -> Tensor:
    """Return the sum of ``of_rows`` over blocks, float64."""
    total = of_rows(next(parts)).double()
    for rows in parts:
        total += of_rows(rows)
    return total

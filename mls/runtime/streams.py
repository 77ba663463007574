"""The random streams of a run: every draw that does not come from torch, in one place.

    rng = streams.views(seed=0, epoch=3, row=17, view=1)

A stream depends only on its words, so nothing has to be saved, and workers and resumed runs draw the same numbers.

numpy pads a seed of fewer than four words with zeros: ``(seed, epoch)``, ``(seed, epoch, 0)`` and ``(seed, epoch, 0,
0)`` are one stream. So each stream has four words here, and the fourth says what it is for: give a new stream a fourth
word that no other stream of its stage has. (A fifth word makes a different stream, even if it is 0. A seed of 2^32 or
more takes two words, in all streams alike.) The first streams were written without that rule. Where two of them
coincide, their docstrings say so; they keep their words, since others would change the results of all experiments, to
no measurable benefit.

`tests/runtime/test_streams.py` lists which streams a stage uses, and checks that no others coincide.
"""

from __future__ import annotations

from numpy.random import Generator, default_rng

LOCAL = 5
"""View of the first local crop: those before it are words of other streams of pretraining."""

# --- data


def scene(seed: int, split: int, index: int) -> Generator:
    """A generated picture."""
    return default_rng((seed, split, index, 0))


def subset(seed: int, part: int) -> Generator:
    """The images of COCO that a subset keeps, of train (part 0) and of test (1)."""
    return default_rng((seed, part, 0, 0))


def held_out(seed: int) -> Generator:
    """The train images that become val. It coincides with the train images of a `subset` of the same seed; they are
    two permutations of different lengths."""
    return default_rng((seed, 0, 0, 0))


# --- pretraining and fine-tuned probes


def views(seed: int, epoch: int, row: int, view: int, *attempt: int) -> Generator:
    """A view of an image: 0, 1, or from `LOCAL` on a local crop; ``attempt`` is a fifth word, from 1, if its crop is
    drawn again."""
    return default_rng((seed, epoch, row, view, *attempt))


def order(seed: int, epoch: int) -> Generator:
    """The order of an epoch's images."""
    return default_rng((seed, epoch, 0, 2))


def shuffle(seed: int, step: int) -> Generator:
    """The permutation of a step's keys over the batch norm groups."""
    return default_rng((seed, step, 0, 3))


def mixture(seed: int, step: int) -> Generator:
    """What mixup does to a step's batch."""
    return default_rng((seed, step, 0, 4))


# --- transfer


def order_and_flips(seed: int, epoch: int) -> Generator:
    """The order of an epoch's samples, and which are flipped."""
    return default_rng((seed, epoch, 0, 0))


def side(seed: int, epoch: int, row: int) -> Generator:
    """The size to which Detectron2's samples are resized. That of row 0 coincides with `order_and_flips`: one image's
    size in each epoch depends on the order."""
    return default_rng((seed, epoch, row, 0))


def crop_and_colour(seed: int, epoch: int, row: int) -> Generator:
    """The scale, crop and distortion of a sample of semantic segmentation."""
    return default_rng((seed, epoch, row, 3))


def sampled(seed: int, step: int, place: int, purpose: int) -> Generator:
    """The seed of torch's draws for one image of a step, by its place in the batch, if ranks share the batch.
    ``purpose`` is one of `mls.transfer.draws.Purpose`, from 5."""
    return default_rng((seed, step, place, purpose))


# --- probes


def few_images(seed: int, sample: int, k: int, label: int) -> Generator:
    """The images that the low-shot SVM of one class is fitted on."""
    return default_rng((seed, sample, k, label))


# --- figures


def queries(seed: int) -> Generator:
    """The images of a figure. It coincides with the crop of row 0, if that is among them (`views` of epoch 0)."""
    return default_rng((seed, 0, 0, 0))

"""COCO in its official layout: ``annotations/instances_<split>.json`` and ``<split>/*.jpg``, whole or a subset.

    listing = read_listing(CocoDataset(source="coco"), Reader(Path("data/coco")))

Every object is kept, crowds (``iscrowd``) included. A file that contradicts itself is an error that names the file and
the id; for that, `Listing.find_degenerate` decodes the mask of every object of the chosen images. Objects of no area,
of which official COCO holds a few, are no contradiction: they are listed as degenerate.
"""

from __future__ import annotations

from mls.config.datasets import CocoDataset, CocoSubset
from mls.data.coco_file import Images, Instances
from mls.data.listing import Entry, Listing, with_val
from mls.download.reader import Reader
from mls.pipeline.plan import read_ids
from mls.runtime import streams
from mls.runtime.errors import MlsError


def read_listing(config: CocoDataset, reader: Reader) -> Listing:
    """Read and check both annotation files.

    Classes are all categories of the train file, by ascending id. A seeded share of train (a permutation of the sorted
    image ids) becomes val; ``test_split`` becomes test. An image's annotations stay in the order of their ids. Images
    of a subset need not be there yet.

    Raises:
        MlsError: names the file, the id and the value.
    """
    train, test = (Instances(reader, split) for split in (config.train_split, config.test_split))
    for key, name in test.categories.items():
        if train.categories.get(key) != name:
            test.fail(f"category {key} ({name!r}) is {train.categories.get(key)!r} in {train.file}")
    if config.subset:
        _choose(config.subset, train, test)
    else:
        train.check_files()
        test.check_files()
    numbers = {key: i for i, key in enumerate(sorted(train.categories))}
    entries = [train.entry(key, "train", numbers) for key in sorted(train.images)]
    entries += [test.entry(key, "test", numbers) for key in test.images]
    if config.unlabeled:
        unlabeled = Images(reader, "unlabeled2017", "image_info_unlabeled2017")
        unlabeled.check_files()
        entries += [Entry(name, "unlabeled", [], [], (w, h)) for name, w, h in unlabeled.images.values()]
    classes = [train.categories[key] for key in numbers]

    def find_degenerate() -> list[dict[str, str]]:
        return [*train.degenerate(), *test.degenerate()]

    return Listing(classes, True, with_val(entries, config, reader), find_degenerate=find_degenerate)


def _choose(subset: CocoSubset, train: Instances, test: Instances) -> None:
    """Keep only the images of a subset."""
    if subset.ids is not None:
        ids = read_ids(subset.ids)
        if absent := [key for key in ids if key not in train.images and key not in test.images]:
            raise MlsError(
                f"{subset.ids}: {len(absent)} ids are neither in {train.file} nor in {test.file}: "
                f"{', '.join(map(str, absent[:5]))}"
            )
        train.keep(set(ids))
        test.keep(set(ids))
        return
    for instances, count, part in ((train, subset.images or 0, 0), (test, subset.test, 1)):
        there = sorted(instances.images)
        if count > len(there):
            instances.fail(f"has {len(there):,} images, but the subset asks for {count:,}")
        order = streams.subset(subset.seed, part).permutation(len(there))
        instances.keep({there[i] for i in order[:count]})

"""The catalog's table: every public source with its archives. `mls.config.catalog` selects those that an entry reads.

    SOURCES["voc"].archives[0].urls     # mirrors, tried in order

Checksums and sizes are as others publish them, never computed here. Where publishers disagree they are None. Sources:

- TV: md5 in torchvision 0.29's classes (``torchvision/datasets/*.py``).
- TFDS: sha256 and bytes in TensorFlow Datasets (``tensorflow_datasets/url_checksums/*.txt`` and
  ``datasets/oxford_iiit_pet/checksums.tsv``).

A mirror is listed only if it serves the publisher's own archive under its name, not a repacked one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Archive:
    """A file to fetch, and what it unpacks to."""

    file: str
    """Its name, unique within a source."""
    urls: tuple[str, ...]
    """Mirrors, tried in order. Empty: there is no public address, and a person must fetch it."""
    size: int | None
    """Bytes, if known."""
    checksum: str | None
    """``md5:<hex>`` or ``sha256:<hex>`` as published, or None."""
    gives: tuple[str, ...]
    """Paths relative to the root, files or folders, that exist once it is unpacked. It is not fetched if all exist."""
    into: str = ""
    """Folder below the root into which it is unpacked, or into which it is put if it is not an archive."""


@dataclass(frozen=True)
class Source:
    """A public data set."""

    title: str
    page: str
    """Web page that describes it."""
    licence: str
    """Its licence in a few words; the page has the exact terms."""
    hint: str
    """What to do if its host does not answer, for the error message."""
    archives: tuple[Archive, ...]


COCO_HOST = "http://images.cocodataset.org"
"""Plain http: over HTTPS the host answers with the certificate of s3.amazonaws.com."""
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"


def _archives(
    folder: str, hosts: tuple[str, ...], *files: tuple[str, int | None, str | None, *tuple[str, ...]]
) -> tuple[Archive, ...]:
    """Archives of the same hosts that unpack into one folder.

    Args:
        folder: below the root, or empty.
        hosts: addresses without the file name.
        files: name, size, checksum, and paths in the folder that exist once it is unpacked.
    """
    return tuple(
        Archive(
            file,
            urls=tuple(f"{host}/{file}" for host in hosts),
            size=size,
            checksum=checksum,
            gives=tuple(str(PurePosixPath(folder, path)) for path in gives),
            into=folder,
        )
        for file, size, checksum, *gives in files
    )


def _coco(file: str, size: int | None, checksum: str, *gives: str) -> Archive:
    folder = "annotations" if gives[0].endswith(".json") else "zips"
    mirror = f"https://s3.amazonaws.com/fast-ai-coco/{file}"  # fast.ai's copies, with equal names and sizes
    return Archive(file, (f"{COCO_HOST}/{folder}/{file}", mirror), size, checksum, gives)


def _voc(year: int, name: str, size: int | None, md5: str | None, image_set: str, mirrored: bool = True) -> Archive:
    """An archive of VOC. All archives of a year fill the same folders, so each gives a file that no other has."""
    mirror = (f"https://data.pjreddie.com/files/{name}",) if mirrored else ()  # used by TFDS and Darknet
    first, second = (f"{host}.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}" for host in ("https://thor", "http://host"))
    gives = (f"VOCdevkit/VOC{year}/ImageSets/Main/{image_set}.txt",)
    return Archive(name, (first, *mirror, second), size, md5 and f"md5:{md5}", gives)


SOURCES = {
    "coco": Source(
        "COCO 2017",
        "https://cocodataset.org",
        "annotations CC BY 4.0; photographs under their owners' licences and Flickr's terms",
        "images.cocodataset.org has no certificate of its own, so it is reached by plain http, and checksums protect "
        "the files; if http is blocked, fetch the archives by other means",
        (
            # sha256 and bytes: TFDS, coco.txt and coco2017.txt
            _coco(
                "annotations_trainval2017.zip",
                252_907_541,
                "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                "annotations/instances_train2017.json",
                "annotations/instances_val2017.json",
            ),
            _coco(
                "train2017.zip",
                19_336_861_798,
                "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                "train2017",
            ),
            _coco(
                "val2017.zip",
                815_585_330,
                "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                "val2017",
            ),
            # md5: three authors' public download scripts agree; bytes: logs of downloads
            _coco("unlabeled2017.zip", 20_126_613_414, "md5:7ebc562819fdb32847aab79530457326", "unlabeled2017"),
            _coco(
                "image_info_unlabeled2017.zip",
                None,
                "md5:ede38355d5c3e5251bb7f8b68e2c068f",
                "annotations/image_info_unlabeled2017.json",
            ),
        ),
    ),
    "voc": Source(
        "PASCAL VOC",
        "http://host.robots.ox.ac.uk/pascal/VOC/",
        "photographs from Flickr, under its terms; no licence of its own that we know of",
        "the hosts at Oxford are often unreachable for hours: try again later, or fetch the archive from elsewhere "
        "(its checksum is verified); your own image sets, test sets from 2008 on (their annotations are not public) "
        "and VOC2011 (its archive unpacks elsewhere) are not downloaded: put them below VOCdevkit/VOC<year>",
        (
            # md5: TV, voc.py; bytes: TFDS, voc.txt
            _voc(2007, "VOCtrainval_06-Nov-2007.tar", 460_032_000, "c52e279531787c972589f7e41ab4ae64", "trainval"),
            _voc(2007, "VOCtest_06-Nov-2007.tar", 451_020_800, "b6e924de25625d8de591ea690078ad9f", "test"),
            _voc(2012, "VOCtrainval_11-May-2012.tar", 1_999_639_040, "6cd6e144f989b92b3379bac3b3de84fd", "trainval"),
            # md5: TV, voc.py; for 2009, R's torchvision has a different one
            _voc(2008, "VOCtrainval_14-Jul-2008.tar", None, "2629fa636546599198acfcfbfcf1904a", "trainval", False),
            _voc(2009, "VOCtrainval_11-May-2009.tar", None, None, "trainval", False),
            _voc(2010, "VOCtrainval_03-May-2010.tar", None, "da459979d0c395079b5c75ee67908abb", "trainval", False),
        ),
    ),
    "cityscapes": Source(
        "Cityscapes",
        "https://www.cityscapes-dataset.com",
        "terms of its own, for non-commercial use",
        "Cityscapes needs an account: log in at https://www.cityscapes-dataset.com/downloads/ and fetch "
        "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
        # md5: as on the download page, repeated in many public repositories; bytes: logs of downloads
        _archives(
            "",
            (),
            (
                "leftImg8bit_trainvaltest.zip",
                11_592_327_197,
                "md5:0a6e97e94b616a514066c9e2adb0c97f",
                "leftImg8bit/train",
                "leftImg8bit/val",
            ),
            (
                "gtFine_trainvaltest.zip",
                252_567_705,
                "md5:4237c19de34c8a376e9ba46b495d6f66",
                "gtFine/train",
                "gtFine/val",
            ),
        ),
    ),
    "flowers102": Source(
        "Oxford 102 Flowers",
        f"{OXFORD}/flowers/102/",
        "none that we know of",
        "",
        # md5: TV, flowers102.py; bytes: TFDS, oxford_flowers102.txt
        _archives(
            "flowers-102",
            (f"{OXFORD}/flowers/102",),
            ("102flowers.tgz", 344_862_509, "md5:52808999861908f626f3c1f4e79d11fa", "jpg"),
            ("imagelabels.mat", 502, "md5:e0620be6f572b9609742df49c70aed4d", "imagelabels.mat"),
            ("setid.mat", 14_989, "md5:a5357ecc9cb78c4bef273ce3793fc85c", "setid.mat"),
        ),
    ),
    "pets": Source(
        "Oxford-IIIT Pet",
        f"{OXFORD}/pets/",
        "CC BY-SA 4.0; the copyright of photographs stays with their owners",
        "",
        # md5: TV, oxford_iiit_pet.py; bytes and the second host: TFDS, checksums.tsv
        _archives(
            "oxford-iiit-pet",
            (f"{OXFORD}/pets/data", "https://thor.robots.ox.ac.uk/~vgg/data/pets"),
            ("images.tar.gz", 791_918_971, "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c", "images"),
            (
                "annotations.tar.gz",
                19_173_078,
                "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
                "annotations/trainval.txt",
                "annotations/test.txt",
            ),
        ),
    ),
    "dtd": Source(
        "Describable Textures Dataset",
        f"{OXFORD}/dtd/",
        "for research",
        "",
        # md5: TV, dtd.py; bytes: TFDS, dtd.txt
        _archives(
            "dtd",
            (f"{OXFORD}/dtd/download",),
            ("dtd-r1.0.1.tar.gz", 625_239_812, "md5:fff73e5086ae6bdbea199a49dfb8a4c1", "dtd/images", "dtd/labels"),
        ),
    ),
    "aircraft": Source(
        "FGVC-Aircraft",
        f"{OXFORD}/fgvc-aircraft/",
        "for non-commercial research only; the copyright stays with the photographers",
        "",
        # md5: R's torchvision (dataset-fgvc.R) and dm_nevis (fgvc_aircraft.py); bytes: logs of downloads. TFDS
        # (fgvc.txt) lists an older archive of 2,770,575,360 bytes.
        _archives(
            "",
            (f"{OXFORD}/fgvc-aircraft/archives",),
            (
                "fgvc-aircraft-2013b.tar.gz",
                2_753_340_328,
                "md5:d4acdd33327262359767eeaa97a4f732",
                "fgvc-aircraft-2013b/data/images",
                "fgvc-aircraft-2013b/data/variants.txt",
            ),
        ),
    ),
    "cars": Source(
        "Stanford Cars",
        "https://github.com/pytorch/vision/issues/7545",
        "none that we know of; its page is gone",
        "the original host of Stanford Cars is gone; copies are discussed at "
        "https://github.com/pytorch/vision/issues/7545. Put cars_train/, cars_test/, devkit/ and "
        "cars_test_annos_withlabels.mat into one folder named stanford_cars, with the images directly in cars_train/ "
        "and cars_test/ (some copies nest them in cars_train/cars_train)",
        # sha256 and bytes: TFDS, cars196.txt
        _archives(
            "stanford_cars",
            (),
            (
                "cars_train.tgz",
                979_269_282,
                "sha256:512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
                "cars_train",
            ),
            (
                "cars_test.tgz",
                977_350_468,
                "sha256:bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
                "cars_test",
            ),
            (
                "car_devkit.tgz",
                330_960,
                "sha256:b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
                "devkit/cars_train_annos.mat",
                "devkit/cars_meta.mat",
            ),
            (
                "cars_test_annos_withlabels.mat",
                185_758,
                "sha256:790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
                "cars_test_annos_withlabels.mat",
            ),
        ),
    ),
    "cub200": Source(
        "CUB-200-2011",
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        "for non-commercial research and education; photographs are their owners'",
        "data.caltech.edu can be slow",
        (
            # md5: CaltechDATA's record 65de6-vp158, as Avalanche's cub200.py and others repeat it; bytes: TFDS,
            # caltech_birds2011.txt, and fastai's checks.txt for its mirror
            Archive(
                "CUB_200_2011.tgz",
                (
                    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
                    "https://s3.amazonaws.com/fast-ai-imageclas/CUB_200_2011.tgz",
                ),
                1_150_585_339,
                "md5:97eceeb196236b17998738112f37df78",
                (
                    "CUB_200_2011/images",
                    "CUB_200_2011/classes.txt",
                    "CUB_200_2011/images.txt",
                    "CUB_200_2011/image_class_labels.txt",
                    "CUB_200_2011/train_test_split.txt",
                ),
            ),
        ),
    ),
    "indoor67": Source(
        "MIT Indoor 67",
        "https://web.mit.edu/torralba/www/indoor.html",
        "none that we know of; photographs from the web",
        "indoorCVPR_09.tar unpacks to Images/<class>/; TrainImages.txt and TestImages.txt belong beside Images",
        # bytes: logs of downloads. No md5 or sha256 is published (vipy's mit67.py has a sha1 of the archive).
        (
            *_archives(
                "",
                ("http://groups.csail.mit.edu/vision/LabelMe/NewImages",),
                ("indoorCVPR_09.tar", 2_592_010_240, None, "Images"),
            ),
            *_archives(
                "",
                ("https://web.mit.edu/torralba/www", "http://web.mit.edu/torralba/www"),
                ("TrainImages.txt", None, None, "TrainImages.txt"),
                ("TestImages.txt", None, None, "TestImages.txt"),
            ),
        ),
    ),
}
"""By ``source`` key."""

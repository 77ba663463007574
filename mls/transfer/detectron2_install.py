"""Check whether Detectron2 can be used here and, if not, say what to do about it.

problem = detectron2_problem()          # None, or a sentence with its remedy
require_detectron2("transfer fpn")      # MlsError with that sentence
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings

from mls.runtime.errors import MlsError

DETECTRON2_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
"""The tested commit (with torch 2.15)."""
FROM_SOURCE = f"--no-build-isolation git+https://github.com/facebookresearch/detectron2@{DETECTRON2_COMMIT}"
INSTALL = f"pip install {FROM_SOURCE} in this environment (README: Detectron2)"
# Without these options pip keeps the installed package, or reuses the cached wheel of the last build.
REBUILD = f"pip install --force-reinstall --no-deps --no-cache-dir {FROM_SOURCE} in this environment"


def detectron2_problem() -> str | None:
    """Return in one sentence why Detectron2 can't be used, and the remedy; None if it can be used."""
    found = detectron2_finding()
    return "; ".join(found) if found else None


def require_detectron2(what: str) -> None:
    """Check that Detectron2 can be used; call this before importing a module that imports it.

    Detectron2's own deprecation warnings are silenced from here on.

    Args:
        what: needs Detectron2; the message names it.

    Raises:
        MlsError: Detectron2 can't be used; says why, and the remedy.
    """
    if problem := detectron2_problem():
        raise MlsError(f"{what}: {problem}")
    for known in (
        "pkg_resources is dep",
        ".*torch.jit.script. is dep",
        "torch.meshgrid",
        "The given NumPy array is not",
    ):
        warnings.filterwarnings("ignore", message=known)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def detectron2_finding() -> tuple[str, str] | None:
    """Return the problem and its remedy; None if there is no problem."""
    with warnings.catch_warnings():  # the zoo uses pkg_resources, the layers torch.jit.script: both are deprecated
        warnings.simplefilter("ignore")
        try:
            for part in ("detectron2", "detectron2._C", "detectron2.model_zoo"):
                importlib.import_module(part)
            sys.modules[part].get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
        except Exception as error:
            reason = next(filter(None, str(error).splitlines()), type(error).__name__)
            absent = error.name if isinstance(error, ModuleNotFoundError) else None
            if absent == "detectron2":
                return "Detectron2 is not installed", INSTALL
            if absent == "pkg_resources":
                return "Detectron2's model zoo needs pkg_resources, of older setuptools", "pip install 'setuptools<81'"
            if part == "detectron2._C":
                return f"Detectron2's operators were not compiled for this torch ({reason})", REBUILD
            return f"Detectron2 is incomplete: {part} fails ({reason})", INSTALL
    return None

"""Code that is named by a string is only named in a registry, and every such name resolves."""

from __future__ import annotations

import ast
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from mls.config.experiment import Pretrain
from mls.config.methods import METHODS
from mls.config.references import dotted_keys
from mls.config.transfers import KINDS, TRANSFERS
from mls.pipeline.make import STAGE_MODULES

ROOT = Path(__file__).parents[2]
REGISTERED = {
    *(entry.made_by for entry in METHODS.values() if entry.made_by),
    *(kind.scored_by for kind in KINDS.values()),
    *(section.made_by for section in TRANSFERS),
    *STAGE_MODULES.values(),
}


def strings(file: Path) -> Iterator[str]:
    """Every string constant of a module, except docstrings."""
    tree = ast.parse(file.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_code_is_only_named_by_strings_in_registries() -> None:
    name = re.compile(r"mls(\.[a-z_0-9]+)+(:[A-Za-z_]\w*)?")
    found = {text for file in (ROOT / "mls").rglob("*.py") for text in strings(file) if name.fullmatch(text)}
    keys = {key for key in dotted_keys(Pretrain) if key.startswith("mls.")}  # of the block ``mls``, not of the package
    assert found - keys == REGISTERED


def test_every_registered_name_resolves() -> None:
    for name in REGISTERED:
        try:
            assert pkgutil.resolve_name(name), name
        except ModuleNotFoundError as error:  # Detectron2 is optional: then the source must have the class
            module, _, member = name.partition(":")
            assert (error.name or "").startswith("detectron2"), name
            assert f"class {member}(" in (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(), name
    for name in STAGE_MODULES.values():
        assert callable(pkgutil.resolve_name(f"{name}:run")), name

"""Programs for the ranks of a test."""

from __future__ import annotations

BROKEN_DECODER = """
import os
if os.environ.get("RANK") == "1":
    import mls.data.image_store
    from mls.runtime.errors import MlsError
    def broken(self, row):
        raise MlsError("broken on purpose")
    mls.data.image_store.ImageStore.decode = broken
"""
"""A sitecustomize.py with which rank 1 fails when it reads its first image."""

"""Fixtures of the data sets' tests."""

import pytest
import torchvision.datasets


@pytest.fixture
def any_flowers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand-made .mat files are not the published ones."""
    files = {key: (file, None) for key, (file, _) in torchvision.datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", files)

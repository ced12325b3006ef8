"""A folder that alone may be written into, and an environment with a secret in it."""

from __future__ import annotations

import border
import huggingface_hub.constants
import pytest


@pytest.fixture
def enclosed(tmp_path, monkeypatch):
    for name, value in {
        "ROPEWALK_STORE": str(tmp_path / "store"),
        "ROPEWALK_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torch"),  # which torch makes when it is imported
        "CUDA_VISIBLE_DEVICES": "",
        "HF_TOKEN": border.SECRET,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # which it reads when it is imported
    for words in (["theory", "--json"], ["plan"]):  # what is imported once is nobody's three seconds
        border.run([*words, "length=2048"])
    return tmp_path

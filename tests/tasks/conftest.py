"""The world of fine-tuning."""

from pathlib import Path

import pytest
from finetuning import made


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("finetune"))

"""What the tests of data share: a text, a tokenizer trained on it, and a package that imports without torch."""

from pathlib import Path

import pytest

import electra_fast
from electra_fast.data import text
from electra_fast.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 documents of the help texts that Python carries."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "book.txt"
    documents = [" ".join(part.split()) for name in sorted(topics) for part in topics[name].split("\n\n")]
    lines = (line + "\n" * (1 + (number % 7 == 0)) for number, line in enumerate(documents) if line)
    path.write_text("".join(lines), "utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(book: Path) -> Tokenizer:
    return Tokenizer.train(list(text.documents(book)), 1000)


@pytest.fixture(scope="session")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer's directory."""
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the front of sys.path, with which new processes import electra_fast's files and not torch."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "electra_fast").mkdir()
    (folder / "electra_fast" / "__init__.py").write_text(f"__path__ = {list(electra_fast.__path__)!r}\n")
    return folder

"""The text that Python carries: sentences of docstrings and help topics, without code."""

import sysconfig

import pytest

from electra_fast.data.embedded import embedded_documents

MODULE = '''"""One sentence
over two lines. A second one!  (A third.)

>>> an.example(of="code")

=====
"""

class A:
    """Of the class."""

    def f(self):
        "Of the method."

        def inner():
            """Not of interest, but a docstring."""
'''


def test_sentences_of_docstrings(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("pydoc_data.topics.topics", {"b": "Topic two.\n\nNew paragraph", "a": "Topic one."})
    for path in ("m.py", "test/m.py", "p/site-packages/m.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(MODULE)
    (tmp_path / "broken.py").write_text("def (:")
    (tmp_path / "silent.py").write_text("a = 1")
    sentences = ["One sentence over two lines.", "A second one!", "(A third.)", "Of the class.", "Of the method."]
    assert embedded_documents() == [
        ["Topic one."],
        ["Topic two.", "New paragraph"],
        [*sentences, "Not of interest, but a docstring."],
    ]


@pytest.mark.slow
def test_the_text_of_this_python():
    documents = embedded_documents()
    size = sum(len(line) for document in documents for line in document)
    assert 1e6 < size < 6e6 and len(documents) > 300
    assert all(document and all(line == line.strip() and line for line in document) for document in documents)
    assert not any(line.startswith(">>>") for document in documents for line in document)
    assert any(line.endswith("assertions into a program:") for document in documents for line in document)

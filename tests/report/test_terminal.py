"""What is printed: control characters never reach the terminal, and a stream that fails costs its text alone."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from electra_fast import Discriminator, NetworkConfig
from electra_fast.cli.main import main
from electra_fast.report.closing import closing_report, marked_sentence
from electra_fast.report.terminal import Terminal, printable, progress_bar, say

HOSTILE = {  # what a file may hold, and what is shown of it
    "\x1b[2J\x1b]0;title\x07": "\\x1b[2J\\x1b]0;title\\x07",
    "a\rb\x08\x00": "a\\rb\\x08\\x00",
    "\x9b31m\x85\x7f": "\\x9b31m\\x85\\x7f",  # C1: one byte in place of ESC [
    "\u202etxt.exe\u2066\u2028": "\\u202etxt.exe\\u2066\\u2028",
    "caf\udce9": "caf\\udce9",  # a file name that is not UTF-8
    "Zürich\t東京\n\u200dनमस्ते": "Zürich\t東京\n\u200dनमस्ते",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_are_shown_and_not_obeyed(text: str, capsys: pytest.CaptureFixture) -> None:
    assert printable(text) == HOSTILE[text]
    say(text)
    say(text, sys.stderr)
    said = capsys.readouterr()
    assert said.out == said.err == HOSTILE[text] + "\n"


def test_the_closing_report_shows_words_of_the_vocabulary(capsys: pytest.CaptureFixture) -> None:
    sentence = marked_sentence(["\x1b[2Jone", "two\x9b"], {1: "\x07new"}, torch.tensor([0.9, 0.1]))
    say(closing_report({}, {"auc": 0.5}, [sentence], [sentence]))
    said = capsys.readouterr().out
    assert "{\\x1b[2Jone 90%} {two\\x9b>\\x07new 10%}" in said and not any(c in said for c in "\x1b\x9b\x07")
    assert "discriminator AUC (0.5 is a guess)              -    0.500" in said


def test_a_character_that_the_stream_lacks() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    say("Zürich", stream)
    assert stream.buffer.getvalue() == b"Z\\xfcrich\n"


class Failing(io.StringIO):
    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), OSError(5, "gone"), ValueError("closed"),
                                   RuntimeError("reentrant call")])  # fmt: skip
def test_a_stream_that_fails(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    stream = Failing()
    stream.error = error
    monkeypatch.setattr(sys, "stderr", stream)
    say("lost", stream)
    with progress_bar(total=2) as bar:
        for _ in range(2):
            bar.update()
            bar.refresh()
        say("kept")
    assert bar.n == 2 and capsys.readouterr().out == "kept\n"


def test_no_stream_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    say("lost")
    with progress_bar(total=1) as bar:
        bar.update()


def test_a_line_is_printed_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is cleared, the line written, and the bar drawn again below it."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    with progress_bar(total=2, ncols=40) as bar:
        bar.refresh()
        stream.truncate(0), stream.seek(0)
        say("a line")
        said = stream.getvalue()
    assert said.startswith("\r") and "a line\n\r" in said and "0/2" in said.split("a line\n")[1]


@pytest.mark.parametrize("where", ["full disk", "broken pipe", "closed"])
def test_the_exit_status_is_the_works(where: str, tmp_path: Path) -> None:
    """Text that could not be written is not tried again when Python exits, which would end with status 120."""
    code = "from electra_fast.report.terminal import say; import sys; say('x' * 20_000); say('y'); say('z', sys.stderr)"
    if where == "full disk":
        stream = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stream = os.pipe()
        os.close(reader)
    command = [sys.executable, "-c", code]
    if where == "closed":
        command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    child = subprocess.run(command, stdout=stream, stderr=stream)
    os.close(stream)
    assert child.returncode == 0


def test_equal_by_stream() -> None:
    one, other = io.StringIO(), io.StringIO()
    assert Terminal(one) == Terminal(one) != Terminal(other) and len({Terminal(one), Terminal(one)}) == 1


@pytest.mark.parametrize("arguments", [
    ["\x1b[2J"], ["prepare", "\x1b[2J.txt", "--out", "new"], ["info", "--\x1b[2J", "1"], ["convert", "\x1b[2J", "new"],
])  # fmt: skip
def test_errors_of_the_command_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    said = capsys.readouterr().err
    assert "\\x1b[2J" in said and "\x1b" not in said and "Traceback" not in said


def test_a_warning_is_one_line(tmp_path: Path) -> None:
    Discriminator(NetworkConfig(vocab_size=20, num_hidden_layers=1)).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "SHA256SUMS").unlink()
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace("{", '{"directionality": "bidi",', 1))
    code = "from electra_fast.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"
    child = subprocess.run([sys.executable, "-c", code, "convert", config.parent, tmp_path / "out"], text=True,
                           capture_output=True, check=True)  # fmt: skip
    told = f"electra-fast: {config} has keys that are not known here and are ignored: 'directionality'"
    assert child.stderr.splitlines() == [told]

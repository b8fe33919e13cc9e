"""The entry point of `electra-fast`: which command runs, how errors are told, and the exit status.

Nothing here imports torch or tyro before a command is chosen, so that the first screen is there at once.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings

from electra_fast.cli.interrupts import INTERRUPTED, importing

COMMANDS = {  # command -> the module of electra_fast.cli that has it, what it does
    "prepare": ("pretraining", "turn text into a tokenizer and a corpus of training examples"),
    "pretrain": ("pretraining", "train a generator and a discriminator on text"),
    "finetune": ("tasks", "train a pre-trained model on a task, over several seeds"),
    "evaluate": ("tasks", "print the official scores of a fine-tuned model"),
    "predict": ("tasks", "print what a fine-tuned model says of examples without labels"),
    "score": ("scoring", "print how natural sentences are to a pre-trained network"),
    "convert": ("pretraining", "turn Google's or transformers' weights into this package's"),
    "info": ("pretraining", "print versions, devices, and what each op runs on"),
}
PLAIN = warnings.formatwarning
SCREEN = """\
electra-fast pre-trains and fine-tunes ELECTRA on GPU and CPU.

Pre-train on your own text:
  electra-fast pretrain --data my-text.txt --out my-run

Fine-tune on your own task:
  electra-fast finetune --task classification --train train.csv --dev dev.csv \\
      --model my-run/final/discriminator --out my-task

Use a fine-tuned model:
  echo "a film to remember" | electra-fast predict --model my-task/model

Commands (electra-fast COMMAND --help lists a command's options):
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command of the command line.

    arguments: those after the program's name; sys.argv's by default.

    Returns the exit status: 0 done, 1 a user's mistake or a full disk, 2 a command line that does not fit (each told
    in one sentence on stderr), 128 + n stopped by signal n.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    warnings.formatwarning = _one_line
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our output, as `| head` does, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        return _tell(f"electra-fast: {error}; pip install {error.name}", 1)
    except (ValueError, TypeError, IndexError, OSError, FloatingPointError, ImportError) as error:
        return _tell(f"electra-fast: {error}", 1)
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", str(error))):
            raise
        amount = re.search(r"allocate ([\d.]+ \w+)", str(error))
        more = f" for {amount[1]} more" if amount else ""
        return _tell(
            f"electra-fast: there is not enough memory{more}; lower --batch-size or --max-length, or take a smaller "
            f"model or a smaller file",
            1,
        )
    except KeyboardInterrupt:
        return _tell("electra-fast: interrupted", INTERRUPTED)
    finally:
        warnings.formatwarning = PLAIN


def _tell(sentence: str, status: int) -> int:
    """Print a sentence on stderr, without what a terminal would obey, and return the exit status."""
    from electra_fast.report.terminal import say

    say(sentence, sys.stderr)
    return status


def _one_line(message: Warning | str, category: type, filename: str, lineno: int, line: str | None = None) -> str:
    """A warning of this package as a user reads it, without the line of code that gave it."""
    if not filename.startswith(os.path.dirname(os.path.dirname(__file__))):
        return PLAIN(message, category, filename, lineno, line)
    from electra_fast.report.terminal import printable

    return f"electra-fast: {printable(str(message))}\n"


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(SCREEN + "\n".join(f"  {name:<10}{what}" for name, (_, what) in COMMANDS.items()))
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        return _tell(f"electra-fast: {name} is not a command; allowed: {', '.join(COMMANDS)}", 2)
    with importing():
        from electra_fast.cli.options import UsageError, build

        commands = importlib.import_module(f"electra_fast.cli.{COMMANDS[name][0]}")
        command = commands.COMMANDS[name]
        command = command.variant(name, arguments[1:]) or command
    try:
        options = build(name, command, arguments[1:])
    except UsageError as error:
        return _tell(str(error), 2)
    return 0 if options is None else command.run(*options)

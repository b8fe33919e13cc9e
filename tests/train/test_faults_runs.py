"""Faults of checkpoints, processes and machines (rows 40 to 56); see world.py."""

import errno
import importlib
import importlib.metadata
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import tqdm.std
from safetensors.torch import load_file
from world import RESUME_OLDER, SAVE_AGAIN, Bomb, Cases, World, config, edit, header, patch, refuse, span, tensors

from electra_fast import Electra
from electra_fast.cli.main import main
from electra_fast.ops._core import core, why
from electra_fast.storage import checkpoint
from electra_fast.storage.lock import InUseError, Lock

case = Cases()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def bogus_keys(found: dict[str, torch.Tensor]) -> None:
    found["extra"] = torch.zeros(2)
    found["generator_predictions.dense.weight"] = torch.zeros(3, 3)
    del found["generator_lm_head.bias"]


def pickled_weights(world: World) -> None:
    world.generator.unlink()
    (world.generator.parent / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(world.root / "exploded")))


def same_weights(one: Path, other: Path) -> bool:
    return all((one / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes()
               for name in ("model", "optimizer"))  # fmt: skip


def steps_logged(run: Path) -> list[int]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["kind"] == "train"]


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if ".tmp-" in path.name]


NO_PICTURES = """
# As the fixture no_pictures in conftest.py.
from electra_fast.train import finish, pretrain
finish.plot_curves, pretrain.measured_peak = (lambda rows, path: path.touch()), (lambda device: 1e12)"""


def process(arguments: list[str], before: str = "", **options: object) -> subprocess.Popen:
    """The command line in a process of its own, after some Python; a pre-training run has NO_PICTURES."""
    program = f"""
import os, signal, sys, time
{before}
{NO_PICTURES if arguments[0] == "pretrain" else ""}
from electra_fast.cli.main import main
sys.exit(main({arguments}))"""
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) | options
    return subprocess.Popen([sys.executable, "-c", program], **options)


# What breaks, what is run on it, and what the user reads.
REFUSED: dict[str, tuple[Callable[[World], object], str | Callable[[World], object], list[str]]] = {
    "row42-flipped-byte": (
        lambda w: flip(w.newest / "model.safetensors"),
        "resume",
        ["{run}/checkpoint-2 is damaged: 'model.safetensors' has SHA-256 ", "... was written", RESUME_OLDER],
    ),
    "row42-truncated": (
        lambda w: os.truncate(w.newest / "optimizer.safetensors", 100),
        "resume",
        ["'optimizer.safetensors' has 100 bytes, ", " were written", RESUME_OLDER],
    ),
    "row43-pickle": (
        pickled_weights,
        "train",
        ["{pair}/generator has no model.safetensors (['config.json', 'pytorch_model.bin']), the only weights read",
         "can run code and are never opened", "model.save_pretrained(DIR, safe_serialization=True"],
    ),
    "row43-pickle-in-a-checkpoint": (
        lambda w: (w.newest / "model.pt").write_bytes(pickle.dumps(Bomb(w.root / "exploded"))),
        "resume",
        ["'model.pt' is not in the manifest", RESUME_OLDER],
    ),
    "row44-100,001-tensors": (
        lambda w: header(w, {str(number): span(0, 0) for number in range(100_001)}),
        "train",
        ["{generator} claims 100001 tensors; at most 100000 are allowed", SAVE_AGAIN],
    ),
    "row44-header-of-16-MB": (
        lambda w: header(w, b"{}".ljust((16 << 20) + 1)),
        "train",
        ["{generator} has 16777225 bytes and claims a header of 16777217; at most 16777216", SAVE_AGAIN],
    ),
    "row44-duplicate-key": (
        lambda w: header(w, (json.dumps({"a": span(0, 0)})[:-1] + ", " + json.dumps({"a": span(0, 0)})[1:]).encode()),
        "train",
        ["{generator}: ", "key 'a' twice", "each key once, is allowed", SAVE_AGAIN],
    ),
    "row45-all-that-differs": (
        lambda w: tensors(w, bogus_keys),
        "train",
        ["{pair}/generator does not fit the model; take weights of this architecture and size",
         "missing: generator_lm_head.bias ({vocab},)", "unexpected: 'extra' (2,)",
         "wrong shape: generator_predictions.dense.weight is (3, 3), the model has (16, 16)"],
    ),
    "row45-vocabulary": (
        lambda w: edit(w.generator.parent / "config.json", lambda content: content.update(vocab_size=90)),
        "train",
        ["{pair}/generator does not fit", "vocabulary has {vocab} tokens, the model's 90: set vocab_size to {vocab}",
         "wrong shape: generator_lm_head.bias is ({vocab},), the model has (90,)"],
    ),
    "row46-quantised": (
        lambda w: config(w, quantization_config={"bits": 4}),
        "train",
        ["{pair}/discriminator/config.json: quantization_config is {'bits': 4}", "None only; take such a model, or"],
    ),
    "row46-heads": (
        lambda w: config(w, num_attention_heads=3),
        "train",
        ["config.json: hidden_size 32 is not a multiple of num_attention_heads 3", "1 here; correct it there"],
    ),
    "row46-negative": (
        lambda w: config(w, hidden_size=-32),
        "train",
        ["config.json: hidden_size is -32; it must lie between 1 and 65536; correct it there"],
    ),
    "row46-layers-in-words": (
        lambda w: config(w, num_hidden_layers="1e9"),
        "train",
        ["config.json: num_hidden_layers is '1e9', a str; it must be a finite int; correct it there"],
    ),
    "row46-10^9-layers": (
        lambda w: config(w, num_hidden_layers=10**9),
        "train",
        ["config.json: num_hidden_layers is 1000000000; it must lie between 1 and 1000; correct it there"],
    ),
    "row46-another-model": (
        lambda w: config(w, model_type="bert"),
        "train",
        ["config.json: model_type is 'bert'", "model_type = 'electra' only; take such a model, or run it in"],
    ),
    "row46-unknown-key-of-the-objective": (
        lambda w: edit(w.pair / "electra.json", lambda content: content.update(rotary=1)),
        lambda w: Electra.from_pretrained(w.pair),
        ["{pair}: ", "'rotary'", "correct electra.json there"],
    ),
    "row46-damaged-objective": (
        lambda w: (w.pair / "electra.json").write_text("{"),
        lambda w: Electra.from_pretrained(w.pair),
        ["{pair}/electra.json: JSONDecodeError", "one JSON object, each key once, is allowed", SAVE_AGAIN],
    ),
    "row47-other-data": (
        lambda w: patch(w, -2, b"\7\0"),  # another word, of which corpus.json has the digest
        "resume",
        ["{run} was trained with other settings than these", "data.sha256: saved ", "--allow-change NAME"],
    ),
    "row47-another-seed": (
        lambda w: None,
        lambda w: w.resume("--seed", "5"),
        ["{run} was trained with other settings than these", "pretrain.seed: saved 0, now 5", "--allow-change NAME"],
    ),
    "row47-another-batch-size": (
        lambda w: None,
        lambda w: w.resume("--batch-size", "1"),
        ["{run} was trained with other settings", "pretrain.batch_size: saved 2, now 1", "--allow-change NAME"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, original: World, world: World, capsys: pytest.CaptureFixture) -> None:
    refuse(*REFUSED[name], original, world, capsys)


@case("row40-kill-9-during-a-save")
def killed_while_saving(world, monkeypatch, capsys) -> None:
    kill = """
from electra_fast.storage import checkpoint
from electra_fast.storage.lock import InUseError, Lock
write = checkpoint.write_tensors
def killed(path, tensors):
    digest = write(path, tensors)
    if "checkpoint-2" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return digest
checkpoint.write_tensors = killed"""
    child = process(world.train(), kill)
    child.communicate()
    new = world.root / "new"
    assert child.returncode == -signal.SIGKILL and [p.name for p in leftovers(new)] and not (new / "final").exists()
    assert [path.name for path in checkpoint.checkpoints(new)] == ["checkpoint-1"]
    assert main(world.train("--resume")) == 0
    assert f"resumed from {new}/checkpoint-1" in capsys.readouterr().out
    assert same_weights(new / "checkpoint-2", world.newest)
    assert leftovers(new) == [] and steps_logged(new) == [1, 2]


@case("row41-full-disk", "fsync", errno.ENOSPC)
@case("row41-broken-disk", "fsync", errno.EIO)
@case("row41-read-only-directory", "rename", errno.EROFS)
def disk_fails(world, monkeypatch, capsys, name, number) -> None:
    """Two saves of three fail; told once, the run goes on, and is as it would have been. The last one must not fail."""
    new, whole = world.root / "new", world.root / "whole"
    assert main(world.train("--steps", "3", "--out", str(whole))) == 0
    before = world.digest()
    call, broken = getattr(os, name), True

    def failing(*arguments: object) -> None:
        paths = str(arguments) if name == "rename" else os.readlink(f"/proc/self/fd/{arguments[0]}")
        if ".tmp-checkpoint-" in paths and (broken or "checkpoint-3" not in paths):
            raise OSError(number, os.strerror(number))
        return call(*arguments)

    monkeypatch.setattr(os, name, failing)
    capsys.readouterr()
    assert main(world.train("--steps", "3")) == 1
    said = capsys.readouterr()
    found, told = said.out + said.err, said.err.split("electra-fast: ")[1]
    assert found.count("training goes on") == 1 and os.strerror(number) in found and "Traceback" not in found
    for part in ("checkpoint-3 could not be saved", os.strerror(number), "older checkpoints are kept",
                 f"Free some space in {new}, or make it writable, and go on with --resume"):  # fmt: skip
        assert part in told, told
    if name == "fsync":
        assert str(new / ".tmp-checkpoint-3") in told, "it names the file"
    assert checkpoint.checkpoints(new) == [] and leftovers(new) == []

    broken = False
    assert main(world.train("--steps", "3")) == 0
    assert [path.name for path in checkpoint.checkpoints(new)] == ["checkpoint-3"] and leftovers(new) == []
    assert same_weights(new / "checkpoint-3", whole / "checkpoint-3")
    assert before.items() <= world.digest().items()


@case("row42-the-advice-works")
def older_checkpoint(world, monkeypatch, capsys) -> None:
    whole = shutil.copytree(world.newest, world.root / "whole")
    flip(world.newest / "model.safetensors")
    shutil.rmtree(world.newest)
    assert main(world.resume()) == 0
    assert "checkpoint-1" in capsys.readouterr().out and same_weights(world.newest, whole)


@case("row43-torch-of-2.10")
def requires_safe_torch(world, monkeypatch, capsys) -> None:
    assert "torch>=2.10" in importlib.metadata.requires("electra_fast")


@case("row48-two-runs")
def shared_directory(world, monkeypatch, capsys) -> None:
    before = world.digest()
    with Lock(world.run / ".lock", world.run):
        assert main(world.resume()) == 1
    said = capsys.readouterr().err
    for part in (f"{world.run} is in use by another run (process {os.getpid()} on ",
                 "only one at a time may write there", "wait for it, stop it, or"):  # fmt: skip
        assert part in said, said
    assert world.digest() == before and main(world.resume()) == 0


SLOW = """
from electra_fast.train.trainer import Pretrainer
step = Pretrainer.step
Pretrainer.step = lambda *arguments: (time.sleep(0.3), step(*arguments))[1]"""
STEPS = ["--steps", "8", "--save-every", "100"]


@case("row49-sigterm-and-resume", [signal.SIGTERM])
@case("row49-terminal-closes", [signal.SIGHUP, signal.SIGHUP])  # the shell's and the kernel's
def terminated(world, monkeypatch, capsys, numbers) -> None:
    """Of a process: it ends its step, saves and leaves; resumed, it is as if nothing had happened."""
    new, whole = world.root / "new", world.root / "whole"
    assert main(world.train(*STEPS, "--out", str(whole))) == 0
    child = process(world.train(*STEPS), SLOW)
    wait_for_a_step(child, new)
    for number in numbers:
        child.send_signal(number)
        time.sleep(0.05)
    said = child.communicate()[1]
    reached = checkpoint.load(checkpoint.latest(new))[0]
    assert child.returncode == 128 + numbers[0] and 0 < reached < 8 and "Traceback" not in said
    assert f"stopped after step {reached}, which is saved; go on with --resume" in said
    assert main(world.train(*STEPS, "--resume")) == 0
    assert same_weights(new / "checkpoint-8", whole / "checkpoint-8")
    assert steps_logged(new) == list(range(1, 9)) and leftovers(new) == []


def wait_for_a_step(child: subprocess.Popen, run: Path) -> None:
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() or not steps_logged(run):
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.05)


@case("row49-nohup")
def started_to_ignore_hangups(world, monkeypatch, capsys) -> None:
    child = process(world.train(*STEPS), "signal.signal(signal.SIGHUP, signal.SIG_IGN)" + SLOW)
    wait_for_a_step(child, world.root / "new")
    child.send_signal(signal.SIGHUP)
    assert child.wait() == 0 and (world.root / "new" / "final").exists()


@case("row49-terminal-gone", "broken pipe")
@case("row41-full-disk-of-the-terminal", "full disk")
def nobody_reads(world, monkeypatch, capsys, where) -> None:
    """What cannot be printed is lost; the run, its checkpoints and its exit status are not."""
    if where == "full disk":
        stream = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stream = os.pipe()
        os.close(reader)
    child = process(world.train(), stdout=stream, stderr=stream)
    os.close(stream)
    assert child.wait() == 0
    assert same_weights(world.root / "new" / "checkpoint-2", world.newest) and (world.root / "new" / "final").exists()


@case("row48-directory-removed", shutil.rmtree, "")
@case("row48-directory-moved", lambda new: new.rename(new.with_name("moved")), "")
@case("row48-lock-removed", lambda new: (new / ".lock").unlink(), "")
@case("row48-directory-replaced", lambda new: (new.rename(new.with_name("moved")), new.mkdir()), "")
@case("row48-directory-of-another-run", lambda new: (new.rename(new.with_name("moved")), shutil.copytree(
    new.with_name("run"), new)), "now holds checkpoint-2 of another run; nothing was written to it")  # fmt: skip
def removed_under_a_run(world, monkeypatch, capsys, remove, refusal) -> None:
    """Told once; the directory is made and locked again, so that no other run can start there, and training ends as if
    nothing had been. A directory of another run that stands there is not written to."""
    save, new, refused = checkpoint.save, world.root / "new", []

    def save_and_look(root: Path, step: int, *rest: object) -> Path:
        if step == 3:
            with pytest.raises(InUseError), Lock(new / ".lock", new):
                pass
            refused.append(step)
        path = save(root, step, *rest)
        if step == 2:
            remove(new)
        return path

    assert main(world.train("--steps", "4", "--out", str(world.root / "whole"))) == 0
    monkeypatch.setattr(checkpoint, "save", save_and_look)
    capsys.readouterr()
    status = main(world.train("--steps", "4"))
    said = capsys.readouterr()
    if refusal:
        assert status == 1 and refusal in said.err and "Put this run's directory back" in said.err, said.err
        assert same_weights(new / "checkpoint-2", world.newest) and len(checkpoint.checkpoints(new)) == 2
        return
    assert status == 0 and refused == [3]
    assert said.out.count(f"{new} or its lock was removed or moved while this run writes there") == 1
    assert same_weights(new / "checkpoint-4", world.root / "whole" / "checkpoint-4") and (new / "final").exists()
    assert steps_logged(new)[-2:] == [3, 4] and not (new / ".lock").exists()


@case("row49-sigint-in-a-save", 1)
@case("row49-sigint-twice-in-a-save", 2)
def interrupted_while_saving(world, monkeypatch, capsys, times) -> None:
    """Once: the save is finished. Twice: the process leaves at once, and no torn checkpoint has a name."""
    write, new = checkpoint.write_tensors, world.root / "new"

    def interrupted(path: Path, group: object) -> str:
        if "checkpoint-1" in str(path) and "model" in path.name:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return write(path, group)

    monkeypatch.setattr(checkpoint, "write_tensors", interrupted)
    if times == 1:
        assert main(world.train()) == 128 + signal.SIGINT
        assert same_weights(new / "checkpoint-1", world.run / "checkpoint-1")
    else:
        with pytest.raises(SystemExit) as left:
            main(world.train())
        assert left.value.code == 128 + signal.SIGINT and checkpoint.latest(new) is None
    monkeypatch.undo()
    assert leftovers(new) == [] and main(world.train("--resume")) == 0
    assert same_weights(new / "checkpoint-2", world.newest)


@case("row53-clock-runs-backwards")
def backward_clock(world, monkeypatch, capsys) -> None:
    clock = iter(range(2_000_000_000, 0, -3600))
    for module in (time, tqdm.std):
        monkeypatch.setattr(module, "time", lambda: float(next(clock)))
    assert main(world.train()) == 0
    assert same_weights(world.root / "new" / "checkpoint-2", world.newest)
    rows = [json.loads(line) for line in (world.root / "new" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["tokens_per_s"] < 1e9 for row in rows if row["kind"] == "train")


@case("row53-newest-step-oldest-file")
def backward_mtimes(world, monkeypatch, capsys) -> None:
    for step in (1, 2):
        for path in [*(world.run / f"checkpoint-{step}").iterdir(), world.run / f"checkpoint-{step}"]:
            os.utime(path, (10**9 - step, 10**9 - step))
    options = ["--steps", "3", "--keep", "2", "--allow-change", "pretrain.steps", "pretrain.learning_rate"]
    assert main(world.resume(*options)) == 0
    assert f"resumed from {world.run}/checkpoint-2" in capsys.readouterr().out
    assert [path.name for path in checkpoint.checkpoints(world.run)] == ["checkpoint-2", "checkpoint-3"]


@case("row54-no-core-no-triton")
def without_core(world, monkeypatch, capsys) -> None:
    hide = """
sys.modules["electra_fast._C"] = sys.modules["triton"] = None
from electra_fast.cli.main import main
assert main(["info"]) == 0"""
    environment = {name: value for name, value in os.environ.items() if name != "ELECTRA_FAST_ISA"}
    child = process(world.train(), hide, env=environment)
    out, err = child.communicate()
    assert child.returncode == 0, err
    assert err.count("electra_fast runs its slower reference on the CPU; the C++ core is not built") == 1
    found = json.JSONDecoder().raw_decode(out)[0]
    assert found["core"].startswith("none: the C++ core is not built: install a C++17 compiler")
    assert all("the C++ core is not built" in found["ops"][name]["cpu"] for name in ("masking", "corrupt"))
    mine, theirs = (load_file(run / "checkpoint-2" / "model.safetensors") for run in (world.root / "new", world.run))
    assert all(torch.allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-5) for name in theirs)


@case("row54-unknown-instruction-set")
def unknown_isa(world, monkeypatch, capsys) -> None:
    if core is None:
        pytest.skip(why)
    child = process(["info"], env=os.environ | {"ELECTRA_FAST_ISA": "nonsense"})
    out, err = child.communicate()
    assert child.returncode == 1 and not out and "Traceback" not in err, err
    for part in ("ELECTRA_FAST_ISA is 'nonsense'; this build on this CPU has base", "set it to one of these, or unset"):
        assert part in err.splitlines()[-1], err


# These repeat what a faster case, or tests/csrc/test_build.py, covers.
REPEATS = ("row49-terminal-closes", "row41-full-disk-of-the-terminal", "row49-nohup", "row54-no-core-no-triton")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in REPEATS else []) for name in case]
)
def test_survived(name: str, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    case[name](world, monkeypatch, capsys)

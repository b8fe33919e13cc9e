"""Faults of tensors and kernels (rows 1 to 29): ids, labels, lengths, probabilities, NaN; see world.py."""

import ast
import importlib
import math
import resource
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from world import PREPARE_AGAIN, Cases, World, edit, patch, refuse, tensors

from electra_fast import Batch, Discriminator, Electra, PretrainConfig, Pretrainer, ops
from electra_fast.cli.main import main
from electra_fast.data.corpus import Corpus

case = Cases()
RATE = PretrainConfig.recipe("tiny").learning_rate
head = importlib.import_module("electra_fast.ops.generator_head")  # the module; ops has the function


def prepare_long(world: World) -> None:
    assert main(world.prepare("--max-length", "64", "--out", str(world.root / "long"))) == 0


def head_example(**changes: object) -> dict[str, object]:
    sizes = dict(hidden=(6, 8), weight=(70, 8), bias=(70,))
    given: dict[str, object] = {name: torch.randn(size) for name, size in sizes.items()}
    return given | dict(labels=torch.tensor([3, -100, 0, 69, 5, 7]), seed=1) | changes


def discriminate(world: World, **ids: torch.Tensor) -> None:
    Discriminator.from_pretrained(world.pair / "discriminator")(**ids)


# What breaks, what is run on it, and what the user reads.
REFUSED: dict[str, tuple[Callable[[World], object], str | Callable[[World], object], list[str]]] = {
    "row15-id-in-a-shard": (
        lambda w: patch(w, -2 * Corpus(w.data).tokens, struct.pack("<H", 500) * Corpus(w.data).tokens),
        "train",
        ["shard {data}/train-00000.bin: token ", " is 500, outside the vocabulary of {vocab}", PREPARE_AGAIN],
    ),
    "row15-id-of-a-caller": (
        lambda w: None,
        lambda w: discriminate(w, input_ids=torch.tensor([[2, 5, 500, 3]])),
        ["embedding: input_ids[2] is 500, outside the table of {vocab} (0 to ", "encoded with another vocabulary"],
    ),
    "row15-negative-id": (
        lambda w: None,
        lambda w: discriminate(w, input_ids=torch.tensor([[2, -1, 3]])),
        ["embedding: input_ids[1] is -1, outside the table of {vocab} (0 to ", "encoded with another vocabulary"],
    ),
    "row16-label": (
        lambda w: None,
        lambda w: ops.generator_head(**head_example(labels=torch.tensor([3, -100, 0, 70, 5, 7]))),
        ["generator_head: labels[3] is 70; 0 to 69, or -100 for a row to leave out"],
    ),
    "row18-longer-than-the-positions": (
        prepare_long,
        lambda w: w.train("--data", str(w.root / "long")),
        ["the batch is 64 columns wide, max_position_embeddings is 32; cut the text into shorter sequences"],
    ),
    "row18-longer-than-the-positions-api": (
        lambda w: None,
        lambda w: discriminate(w, input_ids=torch.full((1, 600), 5)),
        ["the batch is 600 columns wide, max_position_embeddings is 32; cut the text into shorter sequences"],
    ),
    "row20-temperature-nan": (
        lambda w: edit(w.pair / "electra.json", lambda content: content.update(temperature=math.nan)),
        lambda w: Electra.from_pretrained(w.pair),
        ["{pair}: temperature is nan", "it must be a finite float", "correct electra.json there"],
    ),
    "row20-temperature-negative": (
        lambda w: None,
        lambda w: ops.generator_head(**head_example(temperature=-1.0)),
        ["generator_head: temperature is -1.0; 0 (the most likely word) or a finite number above it"],
    ),
    "row21-nan-logits": (
        lambda w: tensors(w, lambda found: found["generator_lm_head.bias"].fill_(math.nan)),
        "train",
        ["step 0: the loss is nan", "no parameter was changed", f"Lower learning_rate ({RATE})", "non_finite='skip'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, original: World, world: World, capsys: pytest.CaptureFixture) -> None:
    refuse(*REFUSED[name], original, world, capsys)


@case("row2-grids")
def only_the_first_axis_of_a_grid_grows(world, monkeypatch, capsys) -> None:
    """CUDA takes 65,535 programs on the others: shares of work there, whose number is fixed, or blocks of a width."""
    sources = Path(importlib.import_module("electra_fast.kernels").__file__).parent.rglob("*.py")
    nodes = [node for source in sources for node in ast.walk(ast.parse(source.read_text()))]
    launched = [n.slice for n in nodes if isinstance(n, ast.Subscript) and ast.unparse(n.value).endswith("_kernel")]
    named = [n.value for n in nodes if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "grid"]
    assert len(launched) > 20
    for grid in launched + named:
        others = grid.elts[1:] if isinstance(grid, ast.Tuple) else []
        assert {ast.unparse(other) for other in others} <= {"shares", "triton.cdiv(width, chosen['BLOCK_E'])"}


@case("row10-nan-where-padding-is")
def nan_of_padding(world, monkeypatch, capsys) -> None:
    network = Discriminator.from_pretrained(world.pair / "discriminator")
    ids, mask = torch.tensor([[2, 9, 3, 0, 0], [2, 7, 8, 9, 3]]), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    clean = network(ids, mask)
    words = next(p for p in network.parameters() if len(p) == network.config.vocab_size)
    with torch.no_grad():
        words[0] = math.nan
    assert torch.equal(network(ids, mask), clean) and network(ids).isnan().any(), "the mask alone keeps it out"


@case("row16-label-that-only-the-core-sees")
def poisoned_label(world, monkeypatch, capsys) -> None:
    """Compiled, nothing looks at labels before the op: the row's loss is NaN, no memory is read for it."""
    compiled = torch.compile(ops.generator_head, fullgraph=True, backend="aot_eager")
    given = head_example()
    given["hidden"].requires_grad_()
    clean, _ = ops.generator_head(**given)
    for label in (70, -1, 2**40):
        loss, _ = compiled(**given | dict(labels=torch.tensor([3, -100, 0, label, 5, 7])))
        rest = [0, 1, 2, 4, 5]
        assert loss[3].isnan() and torch.equal(loss[rest], clean[rest])
        assert torch.autograd.grad(loss[rest].sum(), given["hidden"])[0].isfinite().all()


@case("row17-all-labels-ignored")
def all_labels_ignored(world, monkeypatch, capsys) -> None:
    given = head_example(labels=torch.full((6,), -100))
    loss, _ = ops.generator_head(**given | dict(weight=given["weight"].requires_grad_()))
    loss.mean().backward()
    assert not loss.any() and not given["weight"].grad.any()
    assert F.cross_entropy(torch.randn(6, 70), given["labels"]).isnan(), "torch's own loss of no label"


@case("row17-no-masked-token", [[2, 3, 0]], [[1, 1, 0]])
@case("row17-all-padding", [[0, 0, 0]], [[0, 0, 0]])
def nothing_to_predict(world, monkeypatch, capsys, ids, mask) -> None:
    pair = Electra.from_pretrained(world.pair)
    trainer = Pretrainer(pair, PretrainConfig(steps=10))
    found = trainer.step(Batch.from_padded(torch.tensor(ids), torch.tensor(mask)))
    assert found.generator_loss == 0 and math.isfinite(found.loss) and math.isfinite(found.grad_norm)
    assert (trainer.steps_done, trainer.skipped) == (1, 0)
    if not any(mask[0]):
        assert found.loss == found.grad_norm == 0
    assert all(p.isfinite().all() for p in pair.parameters())
    assert pair.discriminator(torch.tensor(ids), torch.tensor(mask))[torch.tensor(mask) == 0].tolist() == [0] * (
        3 - sum(mask[0])
    )


@case("row20-u-of-0", 0)
@case("row20-u-of-1", 2**32 - 1)  # (2**32 - 1/2) / 2**32 is 1 in float32
def extreme_random_words(world, monkeypatch, capsys, word) -> None:
    """The sample is a word of positive probability, though the random number is at the edge of [0, 1]."""
    fixed = lambda seed, row, group, plane: [torch.full(row.shape, word)] * 4  # noqa: E731
    monkeypatch.setattr(head, "philox", fixed)
    given = head_example(bias=torch.cat([torch.full((65,), -1e4), torch.zeros(5)]))
    given |= dict(
        row_ids=torch.arange(6), seed=torch.tensor([1]), temperature=1.0, disallow_correct=False, label_smoothing=0.0
    )
    loss, sampled = head.generator_head_reference(head.GeneratorHeadArguments(**given))
    assert loss.isfinite().all() and ((sampled >= 65) & (sampled < 70)).all()


@case("row20-temperature-0")
def temperature_of_0(world, monkeypatch, capsys) -> None:
    given = head_example()
    _, sampled = ops.generator_head(**given, temperature=0.0)
    assert torch.equal(sampled, (given["hidden"] @ given["weight"].T + given["bias"]).argmax(1))


@case("row21-parameters-unchanged", "stop")
@case("row21-skipped-and-counted", "skip")
def nan_logits(world, monkeypatch, capsys, non_finite) -> None:
    pair = Electra.from_pretrained(world.pair)
    with torch.no_grad():
        pair.generator.vocabulary_bias[7] = math.nan
    trainer = Pretrainer(pair, PretrainConfig(steps=10, non_finite=non_finite))
    state = trainer.state_dict()["model"] | trainer.state_dict()["optimizer"]
    before = {name: tensor.clone() for name, tensor in state.items()}
    batch = Batch.from_padded(torch.arange(5, 29).reshape(2, 12))
    if non_finite == "stop":
        with pytest.raises(FloatingPointError, match=r"step 0: the loss is nan.*no parameter was changed"):
            trainer.step(batch)
    else:
        assert math.isnan(trainer.step(batch).loss) and trainer.skipped == 1
    assert all(torch.equal(tensor.nan_to_num(5), before[name].nan_to_num(5)) for name, tensor in state.items())


@case("row27-two-models-in-two-threads")
def two_at_once(world, monkeypatch, capsys) -> None:
    def trained(seed: int) -> list[torch.Tensor]:
        pair = Electra.from_pretrained(world.pair)
        trainer = Pretrainer(pair, PretrainConfig(steps=10, warmup_steps=0, seed=seed))
        for step in range(4):
            trainer.step(Batch.from_padded(torch.arange(5 + step, 29 + step).reshape(2, 12)))
        return [p.detach() for p in pair.parameters()]

    alone = [trained(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(trained, (1, 2)))
    for one, other in zip(alone, together, strict=True):
        assert all(map(torch.equal, one, other))
    assert not all(map(torch.equal, *alone))


@case("row29-no-memory")
def no_memory(world, monkeypatch, capsys) -> None:
    """What the system refuses is an error, after which nothing is kept and the same ops work on fewer rows."""
    if sys.platform != "linux":
        pytest.skip("the limit and the size of a process are Linux's")

    def size() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def step() -> list[torch.Tensor]:
        return torch.autograd.grad(ops.linear(x, weight, bias, gelu=True).sum(), (x, weight, bias))

    x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((8, 256), (1024, 256), (1024,)))
    query, keys = torch.zeros(1, 1, 64), torch.zeros(1, 1, 64).expand(2**26, 1, 64)  # 32 GB of keys, packed
    one, many = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 2**26], dtype=torch.int32)
    expected, (soft, hard) = step(), resource.getrlimit(resource.RLIMIT_AS)
    try:
        before = size()
        resource.setrlimit(resource.RLIMIT_AS, (before + 2**30, hard))
        for _ in range(5):
            with pytest.raises((MemoryError, RuntimeError), match="^$|can't allocate memory"):
                ops.attention(query, keys, keys, one, 1, many, 2**26)
            with pytest.raises(RuntimeError, match="can't allocate memory"):
                ops.linear(x[:1].expand(2**26, 256), weight, bias)
            assert all(all(map(torch.equal, step(), expected)) for _ in range(12))
        assert size() - before < 2**26
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("name", case)
def test_survived(name: str, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    case[name](world, monkeypatch, capsys)

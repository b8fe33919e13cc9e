"""The heads against plain padded PyTorch in float64, and against transformers' classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.config import NetworkConfig
from electra_fast.data.batch import Batch
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.model.encoder import Encoder, initialise
from electra_fast.tasks.batch import TaskBatch
from electra_fast.tasks.heads import NEVER, Dropout, JointAnswerHead, make_head
from electra_fast.tasks.model import Task, TaskModel
from electra_fast.tasks.settings import FinetuneConfig

CONFIG = NetworkConfig(
    vocab_size=60, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=32,
)  # fmt: skip
LENGTHS = (9, 5, 12)
KEY = torch.zeros(1, dtype=torch.int64)


def asked(kind: str) -> TaskBatch:
    """Three sequences; as questions, contexts that begin at place 3 and end before the last, the second without."""
    ids = torch.randint(5, 60, (3, 12))
    batch = Batch.from_padded(ids, (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long())
    first = batch.cu_seqlens[:-1].long()
    context = (batch.position_ids >= 3) & (batch.position_ids < batch.lengths.repeat_interleave(batch.lengths) - 1)
    positions, labels = first, torch.tensor([0, 2, 1])
    if kind == "regression":
        labels = torch.tensor([0.1, 0.9, 0.5])
    if kind == "multilabel":
        labels = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    if kind == "tagging":
        positions, labels = torch.tensor([1, 3, 10, 15, 20]), torch.tensor([0, 1, 2, 2, 1])
    if kind == "qa":
        labels = torch.stack([first + torch.tensor([4, 0, 5]), first + torch.tensor([6, 0, 5])], 1)
    return TaskBatch(batch, positions, labels, context, torch.tensor([False, True, False]))


def sequences(hidden: Tensor) -> list[Tensor]:
    return list(hidden.split(list(LENGTHS)))


def joint_losses(head: Any, hidden: Tensor, batch: TaskBatch, weight: float) -> Tensor:
    """Google's formulas, a sequence at a time."""
    found = []
    for i, h in enumerate(sequences(hidden)):
        offset = int(batch.batch.cu_seqlens[i])
        start, end = (batch.labels[i] - offset).tolist()
        mask = torch.full((len(h),), NEVER, dtype=h.dtype)
        mask[3 : len(h) - 1] = 0
        mask[0] = 0
        starts = (head.start(h).squeeze(1) + mask).log_softmax(0)
        pairs = torch.cat([h[start].expand_as(h), h], 1)
        ends = (head.end(F.gelu(head.end_dense(pairs))).squeeze(1) + mask).log_softmax(0)
        loss = (F.nll_loss(starts[None], torch.tensor([start])) + F.nll_loss(ends[None], torch.tensor([end]))) / 2
        both = torch.cat([h[0], starts.exp() @ h])
        p = head.answerable(F.gelu(head.answerable_dense(both))).sigmoid().squeeze()
        found.append(loss - weight * torch.log(p if batch.impossible[i] else 1 - p))
    return torch.stack(found)


def plain_losses(head: Any, hidden: Tensor, batch: TaskBatch, kind: str, style: str) -> Tensor:
    if kind == "qa":
        logits = [head.out(h) for h in sequences(hidden)]
        where = batch.labels - batch.batch.cu_seqlens[:-1, None]
        return torch.stack([F.cross_entropy(x.T, y) for x, y in zip(logits, where, strict=True)])
    rows = torch.stack([hidden[int(p)] for p in batch.positions])
    if style == "huggingface" and kind != "tagging":
        rows = F.gelu(rows @ head.dense.weight.T + head.dense.bias)
    logits = rows @ head.out.weight.T + head.out.bias
    if kind == "regression":
        return (logits.squeeze(1) - batch.labels) ** 2
    if kind == "multilabel":
        p = logits.sigmoid()
        return torch.where(batch.labels == 1, -p.log(), -(1 - p).log()).mean(1)
    return -logits.log_softmax(1)[torch.arange(len(rows)), batch.labels]


@pytest.mark.parametrize("style", ["google", "huggingface"])
@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression", "tagging", "qa"])
def test_losses_and_gradients_of_the_head(kind: str, style: str) -> None:
    head = make_head(CONFIG, kind, 1 if kind == "regression" else 3, style, 0.5).double()
    batch = asked(kind)
    hidden = torch.randn(sum(LENGTHS), 32, dtype=torch.float64, requires_grad=True)
    wanted = (
        joint_losses(head, hidden, batch, 0.5)
        if (kind, style) == ("qa", "google")
        else plain_losses(head, hidden, batch, kind, style)
    )
    found = head.losses(hidden, batch, Dropout(0.0, KEY))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    weights = torch.rand_like(wanted)
    inputs = [hidden, *head.parameters()]
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((wanted * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_beam_is_the_best_starts_and_the_best_ends_of_each() -> None:
    head: Any = JointAnswerHead(CONFIG, 0.5).double()
    batch, hidden = asked("qa"), torch.randn(sum(LENGTHS), 32, dtype=torch.float64)
    scores, starts, end_scores, ends, null = head.spans(hidden, batch, 3)
    for i, h in enumerate(sequences(hidden)):
        allowed = [0, *range(3, len(h) - 1)]
        logits = head.start(h[allowed]).squeeze(1).log_softmax(0)
        k = min(3, len(allowed))
        best = logits.argsort(descending=True)[:k]
        assert starts[i, :k].tolist() == [allowed[j] for j in best]
        torch.testing.assert_close(scores[i, :k], logits[best])
        for row, start in enumerate(starts[i, :k].tolist()):
            pairs = torch.cat([h[start].expand(len(allowed), -1), h[allowed]], 1)
            logits = head.end(F.gelu(head.end_dense(pairs))).squeeze(1).log_softmax(0)
            best = logits.argsort(descending=True)[:k]
            assert ends[i, row, :k].tolist() == [allowed[j] for j in best]
            torch.testing.assert_close(end_scores[i, row, :k], logits[best])
    losses = head.losses(hidden, batch, Dropout(0.0, KEY)) - JointAnswerHead.losses(
        _without(head), hidden, batch, Dropout(0.0, KEY)
    )
    torch.testing.assert_close(2 * losses, F.softplus(torch.where(batch.impossible, -null, null)))


def _without(head: Any) -> Any:
    """The same head without its answerability."""
    bare = JointAnswerHead(CONFIG, 0.0).double()
    bare.load_state_dict({k: v for k, v in head.state_dict().items() if not k.startswith("answerable")})
    return bare


def test_dropout_of_a_head_follows_the_example_and_keeps_the_mean() -> None:
    rows, seeds = torch.ones(4000, 32), torch.tensor([7, 8])
    ids = torch.arange(4000)
    dropped = Dropout(0.1, seeds)(rows, ids)
    assert abs(dropped.mean() - 1) < 0.01 and abs((dropped == 0).float().mean() - 26 / 256) < 0.005
    assert torch.equal(Dropout(0.1, seeds)(rows[10:20], ids[10:20]), dropped[10:20])
    assert not torch.equal(Dropout(0.1, seeds)(rows, ids, 1), dropped)


def test_dropout_of_sequences_but_not_of_words_in_googles_heads() -> None:
    hidden = torch.randn(sum(LENGTHS), 32)
    for kind, changes in (("classification", True), ("tagging", False)):
        head = make_head(CONFIG, kind, 3, "google")
        batch = asked(kind)
        with_, without = (head(hidden, batch, Dropout(p, torch.tensor([3, 4]))) for p in (0.5, 0.0))
        assert torch.equal(with_, without) != changes


def model_for(kind: str, style: str) -> TaskModel:
    encoder = Encoder(CONFIG)
    initialise(encoder, 0.1)
    labels = ("a", "b", "c") if kind in ("classification", "multilabel", "tagging") else ()
    return TaskModel(encoder, Task(kind, None, labels), FinetuneConfig(head=style))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([["the cat sat on the mat, and the dog did not"] * 3], 60)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression", "tagging", "qa"])
def test_transformers_loads_what_is_saved_and_agrees(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    import transformers

    model = model_for(kind, "huggingface").eval()
    model.save(tmp_path / "m", tokenizer)
    names = {"tagging": "TokenClassification", "qa": "QuestionAnswering"}
    theirs, info = getattr(transformers, f"ElectraFor{names.get(kind, 'SequenceClassification')}").from_pretrained(
        tmp_path / "m", output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    if kind in ("classification", "multilabel", "tagging"):
        assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    model, theirs = model.double(), theirs.double().eval()
    batch = asked(kind)
    mask = batch.batch.pad(torch.ones(batch.batch.num_tokens, dtype=torch.int64))
    out = theirs(batch.batch.pad(batch.batch.input_ids), attention_mask=mask)
    hidden = model.hidden(batch, KEY, KEY)
    if kind == "qa":
        wanted = torch.stack([out.start_logits, out.end_logits], -1)[mask.bool()]
        found = model.head(hidden)
    else:
        wanted = out.logits[mask.bool()][batch.positions] if kind == "tagging" else out.logits
        found = model.head(hidden, batch, Dropout(0.0, KEY)).reshape(wanted.shape)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    if kind in ("classification", "multilabel", "regression"):  # they choose the loss by problem_type
        labels = batch.labels.to(torch.int64 if kind == "classification" else torch.float64)
        loss = theirs(batch.batch.pad(batch.batch.input_ids), attention_mask=mask, labels=labels).loss
        ours = model.losses(batch, KEY, KEY).mean()
        torch.testing.assert_close(ours, loss, rtol=0, atol=1e-9)

    weights = torch.randn_like(wanted)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    ours, other = dict(model.named_parameters()), dict(theirs.named_parameters())
    for mine, name in (
        ("encoder.embeddings.word.weight", "electra.embeddings.word_embeddings.weight"),
        ("encoder.layers.0.up.weight", "electra.encoder.layer.0.intermediate.dense.weight"),
        ("encoder.layers.1.ffn_norm.bias", "electra.encoder.layer.1.output.LayerNorm.bias"),
    ):
        ours_grad, their_grad = ours[mine].grad, other[name].grad
        assert ours_grad is not None and their_grad is not None
        rows = slice(1, None) if "word" in name else slice(None)  # transformers gives [PAD] no gradient
        torch.testing.assert_close(ours_grad[rows], their_grad[rows], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression", "tagging", "qa"])
def test_a_checkpoint_of_transformers_loads(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    import transformers

    model = model_for(kind, "huggingface")
    model.save(tmp_path / "m", tokenizer)
    names = {"tagging": "TokenClassification", "qa": "QuestionAnswering"}
    theirs = getattr(transformers, f"ElectraFor{names.get(kind, 'SequenceClassification')}").from_pretrained(
        tmp_path / "m"
    )
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    again, _ = TaskModel.load(tmp_path / "theirs")
    assert (again.task.kind, again.task.labels) == (kind, model.task.labels)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["classification", "tagging", "qa"])
def test_googles_heads_come_back_from_their_directory(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = model_for(kind, "google")
    model.save(tmp_path / "m", tokenizer)
    again, read = TaskModel.load(tmp_path / "m")
    assert again.task == model.task and again.settings == model.settings and read.sha256 == tokenizer.sha256
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_what_is_no_fine_tuned_model_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from electra_fast.model.networks import Discriminator

    Discriminator(CONFIG).save_pretrained(tmp_path / "d")
    tokenizer.save(tmp_path / "d")
    with pytest.raises(ValueError, match="ElectraForPreTraining; a fine-tuned model is wanted"):
        TaskModel.load(tmp_path / "d")

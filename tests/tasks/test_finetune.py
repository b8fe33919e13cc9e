"""Fine-tuning: rates, order, seeds, what is written, what is refused."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import BAD, FAST, FILES, GOOD, SIZES, cli, run_for

from electra_fast.cli.main import main
from electra_fast.config import NetworkConfig
from electra_fast.model.encoder import Encoder
from electra_fast.model.networks import Discriminator, Generator
from electra_fast.objectives.electra import Electra
from electra_fast.storage.weights import read_tensors
from electra_fast.tasks.examples import Example
from electra_fast.tasks.features import Featurizer
from electra_fast.tasks.finetune import finetune
from electra_fast.tasks.finetuner import Finetuner, batches
from electra_fast.tasks.model import Task, TaskModel, load_encoder
from electra_fast.tasks.settings import FinetuneConfig
from electra_fast.train.schedule import layerwise_scales, learning_rate

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("faithful", [False, True])
def test_rates_of_the_layers(faithful: bool) -> None:
    """Google's depths: embeddings and projection 0, layer i i + 1, head n + 2; ours one power less below the head."""
    n, d = 4, 0.8
    model = TaskModel(
        Encoder(NetworkConfig(**(SIZES | dict(num_hidden_layers=n)))),  # type: ignore[arg-type]
        Task("classification", None, ("a", "b")),
        FinetuneConfig(),
    )
    scales = layerwise_scales(dict(model.named_parameters()), n, d, faithful)
    for name, scale in scales.items():
        if name.startswith("head"):
            depth = n + 2
        else:
            depth = next((i + 1 for i in range(n) if f"layers.{i}." in name), 0)
        power = n + 2 - depth if faithful or name.startswith("head") else n + 1 - depth
        assert scale == pytest.approx(d**power), name
    top = "encoder.layers.3.up.weight"
    assert scales[top] == pytest.approx(d**2 if faithful else d)
    assert scales["encoder.embeddings_projection.weight"] == scales["encoder.embeddings.word.weight"]


def finetuner(world: Path, config: FinetuneConfig, seed: int = 0) -> tuple[Finetuner, list[Any]]:
    torch.manual_seed(seed)
    encoder, tokenizer = load_encoder(world / "model")
    model = TaskModel(encoder, Task("classification", None, ("0", "1")), config)
    features = Featurizer(tokenizer, "classification", ("0", "1"), config, 64)
    examples = [Example(str(i), (f"a {GOOD[i % 4]} film",), str(i % 2)) for i in range(8)]
    return Finetuner(model, config, 10, seed), features(examples)


@pytest.mark.parametrize("faithful", [False, True])
def test_a_step_is_adamw_at_each_layers_rate(world: Path, faithful: bool) -> None:
    """The first step without decay moves a parameter by rate * scale * .1 / sqrt(.001) where its gradient is not 0."""
    config = FinetuneConfig(weight_decay=0.0, faithful=faithful, warmup_prob=0.5, max_grad_norm=1e6)
    tuner, features = finetuner(world, config)
    if faithful:
        tuner.step(features, range(8))
        assert learning_rate(tuner.settings, 0, True) == 0
    tuner.optimizer = type(tuner.optimizer)(
        tuner.model.named_parameters(), tuner.settings, (), tuner.optimizer.scales
    )  # fresh moments
    before = {name: p.detach().clone() for name, p in tuner.model.named_parameters()}
    at = tuner.steps_done
    rate = 1e-4 * (1 - at / 10) * min(1, (at if faithful else at + 1) / 5)
    tuner.step(features, range(8))
    for name, scale in tuner.optimizer.scales.items():
        moved = (dict(tuner.model.named_parameters())[name] - before[name]).abs().max().item()
        assert moved == pytest.approx(rate * scale * 0.1 / 0.001**0.5, rel=0.1), name


def test_the_loss_is_a_mean_or_faithfully_a_sum(world: Path) -> None:
    norms = []
    for faithful in (False, True):
        tuner, features = finetuner(world, FinetuneConfig(faithful=faithful))
        norms.append(tuner.step(features, range(8))[1])
    assert norms[1] == pytest.approx(8 * norms[0], rel=1e-4)


def test_every_example_comes_once_an_epoch_in_another_order() -> None:
    found = [i for batch in batches(10, 4, 5, seed=3) for i in batch.tolist()]
    assert sorted(found[:10]) == sorted(found[10:]) == list(range(10)) and found[:10] != found[10:]
    assert [i for batch in batches(10, 4, 5, seed=4) for i in batch.tolist()] != found
    assert [len(b) for b in batches(3, 8, 2, seed=0)] == [8, 8]


@pytest.mark.parametrize("task", FILES)
def test_a_run_of_each_kind(
    world: Path, tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if task == "classification":
        monkeypatch.undo()  # this run draws its curves
    results = finetune(run_for(world, tmp_path / "out", task, seeds=(0, 1)), FAST)
    assert capsys.readouterr().out.count("the tags mark spans by BIO, such as B-NP") == (task == "tagging")
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == results and set(written["seeds"]) == {"0", "1"}
    values = [scores[written["metric"]] for scores in written["seeds"].values()]
    assert written["median"] == pytest.approx(sum(values) / 2)
    assert written["spread"] == max(values) - min(values)
    assert max(values) == written["seeds"][str(written["best_seed"])][written["metric"]]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model", "results.json", "metrics.jsonl", "curves.png", "dev", "errors.txt", "run.json"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"train", "dev"} and {row["seed"] for row in rows} == {0, 1}
    assert all(row["tokens_per_s"] > 0 for row in rows if row["kind"] == "train")
    model, _ = TaskModel.load(tmp_path / "out" / "model")
    assert model.task.kind == task
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_several_labels_are_learnt_and_transformers_agrees(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lists of labels are recognised under --task classification. The same labels in .csv are measured alike."""
    import transformers

    rows = [json.loads(line) for line in (world / "labels.jsonl").read_text().splitlines()]
    (tmp_path / "d.csv").write_text(
        "text,label\n" + "".join(f"{row['text']},{'|'.join(row['labels'])}\n" for row in rows)
    )
    config, file = dataclasses.replace(FAST, epochs=15, head="huggingface"), world / "labels.jsonl"
    results = finetune(run_for(world, tmp_path / "a", "classification", train=file, dev=file), config)
    message = f"{file} has lists of labels: each example may have several, as with --task multilabel"
    assert message in capsys.readouterr().out
    assert (results["task"], results["metric"], results["median"]) == ("multilabel", "f1_micro", 1.0)
    table = (tmp_path / "a" / "errors.txt").read_text().splitlines()
    assert [line.split() for line in table[1:3]] == [["good", "16", "16", "16"], ["long", "11", "11", "11"]]

    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "a" / "model").eval()
    assert model.config.problem_type == "multi_label_classification"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "a" / "model")
    with torch.no_grad():
        logits = model(**tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")).logits
    sets = [[model.config.id2label[i] for i in range(2) if row[i] > 0] for row in logits.tolist()]
    assert sets == [row["labels"] for row in rows]

    assert main(["evaluate", "--model", str(tmp_path / "a" / "model"), "--data", str(tmp_path / "d.csv")]) == 0
    assert json.loads(capsys.readouterr().out) == {"f1_micro": 1.0, "f1_macro": 1.0, "accuracy": 1.0}


def test_training_and_development_are_of_one_kind(world: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "a", "label": "good"}\n{"text": "b", "label": "long"}\n')
    for train, dev in (("one", "labels"), ("labels", "one")):
        files = {name: (tmp_path if name == "one" else world) / f"{name}.jsonl" for name in (train, dev)}
        run = run_for(world, tmp_path / "out", train=files[train], dev=files[dev])
        if train == "one":
            with pytest.raises(ValueError, match="labels.jsonl has lists of labels and .*one.jsonl one label each"):
                finetune(run, FAST)
        else:  # one label is a set of one
            assert finetune(run, FAST)["task"] == "multilabel"


def test_it_learns(world: Path, tmp_path: Path) -> None:
    results = finetune(run_for(world, tmp_path / "c"), dataclasses.replace(FAST, epochs=12))
    assert results["median"] == 1.0 and results["metric"] == "accuracy"
    table = (tmp_path / "c" / "errors.txt").read_text().splitlines()
    assert [line.split() for line in table[1:3]] == [["0", "16", "0"], ["1", "0", "16"]]
    results = finetune(run_for(world, tmp_path / "q", "qa"), dataclasses.replace(FAST, epochs=20))
    assert results["median"] > 0.9 and results["metric"] == "f1"


def test_what_is_left_out_is_told(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A malformed line of dev, and a question that training cannot learn from, by the command line."""
    qas = json.loads((world / "qa.json").read_text())["data"][0]["paragraphs"]
    qas[3]["qas"][0]["answers"][0]["text"] = "nobody"
    (tmp_path / "train.json").write_text(json.dumps(qas))
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*qas, [])))
    assert cli(world, tmp_path / "out", task="qa", train=tmp_path / "train.json", dev=tmp_path / "dev.jsonl") == 0
    said = capsys.readouterr().out
    assert "train.json: left out 1 question whose answers stand nowhere in the context, such as 3\n" in said
    assert "dev.jsonl: left out 1 malformed line (17), the first of which: " in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["examples"] == {"train": 15, "dev": 16} and results["benchmark"] == "squad1"


def test_dev_may_lack_a_class(world: Path, tmp_path: Path) -> None:
    """The model predicts the class that dev lacks, and errors.txt has a row and a column for it."""
    texts = [line.split("\t") for line in (world / "train.tsv").read_text().splitlines()[1:]]
    train, dev = tmp_path / "train.csv", tmp_path / "dev.csv"
    train.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in texts))
    dev.write_text("text,label\n" + "".join(f"{text},0\n" for text, _ in texts))
    finetune(run_for(world, tmp_path / "c", train=train, dev=dev), dataclasses.replace(FAST, epochs=12))
    table = (tmp_path / "c" / "errors.txt").read_text().splitlines()
    assert [line.split() for line in table[1:3]] == [["0", "16", "16"], ["1", "0", "0"]]


@pytest.mark.parametrize("head", ["google", "huggingface"])
def test_questions_without_answers(world: Path, tmp_path: Path, head: str) -> None:
    run = run_for(world, tmp_path / "q", "qa", train=world / "qa2.json", dev=world / "qa2.json")
    results = finetune(run, dataclasses.replace(FAST, epochs=25, head=head))
    assert results["metric"] == "best_f1" and results["median"] > 0.9
    scores = results["seeds"]["0"]
    model, _ = TaskModel.load(tmp_path / "q" / "model")
    assert model.task.null_threshold == scores["best_f1_threshold"]


def test_a_stride_wider_than_the_window_is_limited_and_said(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model has 64 positions and --stride is 128: no token of the context is left out, and nothing fails."""
    context = "fine is the film. " + "a " * 59
    answers = [{"text": "film", "answer_start": context.index("film")}]
    qas = [{"id": "q", "question": "who is in the film", "answers": answers}]
    data = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]}
    (tmp_path / "qa.json").write_text(json.dumps(data))
    file = tmp_path / "qa.json"
    finetune(run_for(world, tmp_path / "out", "qa", train=file, dev=file), FAST)
    said = "the contexts of 1 {}questions are read in windows that are closer than --stride 128"
    assert said.format("training ") in capsys.readouterr().out
    model = ["--model", str(tmp_path / "out" / "model")]
    for command in (["evaluate", "--data", str(file)], ["predict", str(file)], ["predict", str(file), "--out"]):
        if command[-1] == "--out":
            command = [*command, str(tmp_path / "predictions.json")]
        assert main([*command, *model]) == 0
        assert capsys.readouterr().err.count(said.format("")) == 1, command
    qas[0]["id"] = "other"
    data["data"][0]["paragraphs"][0]["context"] = "fine is the film"  # fits into one window
    file.write_text(json.dumps(data))
    assert main(["evaluate", "--data", str(file), *model]) == 0
    assert "--stride" not in capsys.readouterr().err


def test_seeds_reproduce_bit_for_bit(world: Path, tmp_path: Path) -> None:
    for name, seeds in (("a", (1,)), ("b", (0, 1)), ("c", (2,))):
        finetune(run_for(world, tmp_path / name, "tagging", seeds=seeds), FAST)
    a, b = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert a["seeds"]["1"] == b["seeds"]["1"]
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()[:-1]]
        for n in "ac"
    ]
    assert losses[0] != losses[1]
    first = read_tensors(tmp_path / "a" / "model" / "model.safetensors")
    finetune(run_for(world, tmp_path / "again", "tagging", seeds=(1,)), FAST)
    second = read_tensors(tmp_path / "again" / "model" / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first) and first.keys() == second.keys()


def test_random_init_keeps_sizes_and_tokenizer_but_no_weight(world: Path) -> None:
    torch.manual_seed(1)
    drawn, tokenizer = load_encoder(world / "model", random_init=True)
    given, same = load_encoder(world / "model")
    assert drawn.config == given.config and tokenizer.sha256 == same.sha256
    for (name, a), b in zip(drawn.named_parameters(), given.parameters(), strict=True):
        assert "norm" in name or "bias" in name or not torch.equal(a, b), name
    torch.manual_seed(1)
    again, _ = load_encoder(world / "model", random_init=True)
    assert all(torch.equal(a, b) for a, b in zip(drawn.parameters(), again.parameters(), strict=True))


def test_more_embeddings_than_the_tokenizer_has_ids(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many published models have their vocabulary padded to a round number."""
    given, tokenizer = load_encoder(world / "model")
    padded = Discriminator(dataclasses.replace(given.config, vocab_size=256))
    weights = given.state_dict()
    table = padded.encoder.state_dict()["embeddings.word.weight"]
    table[: tokenizer.vocab_size] = weights["embeddings.word.weight"]
    padded.encoder.load_state_dict({**weights, "embeddings.word.weight": table})
    padded.save_pretrained(tmp_path / "padded")
    tokenizer.save(tmp_path / "padded")
    assert tokenizer.vocab_size < 256
    run = run_for(world, tmp_path / "out", model=tmp_path / "padded")
    assert finetune(run, dataclasses.replace(FAST, epochs=12))["median"] == 1.0
    model, _ = TaskModel.load(run.out / "model")
    assert model.config.vocab_size == 256
    assert main(["evaluate", "--model", str(run.out / "model"), "--data", str(run.dev)]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0


def test_tokens_added_to_the_vocabulary_get_embeddings_that_are_trained(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What tells the classes apart are two added tokens, which are pieces alike without added_tokens.json."""
    base, tokenizer = load_encoder(world / "model")
    shutil.copytree(world / "model", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    size = tokenizer.vocab_size
    (tmp_path / "model" / "added_tokens.json").write_text(json.dumps({"[W1]": size, "[W2]": size + 1}))
    assert tokenizer.encode(["[W1] film", "[W2] film"])[0].count(tokenizer.unk_token_id) > 0
    given, larger = load_encoder(tmp_path / "model")
    assert larger.encode(["[W1] film"])[0][0] == size and given.config.vocab_size == size + 2
    table, old = given.embeddings.word.weight, base.embeddings.word.weight
    assert torch.equal(table[:size], old) and not torch.equal(table[size], table[size + 1])
    drift = (table[size:] - old.mean(0)).std() / given.config.initializer_range
    assert 0.6 < drift < 1.5  # 32 numbers drawn with that deviation
    rows = [{"text": f"[W{i}] a film of {word}", "label": str(i)} for i in (1, 2) for word in GOOD + BAD]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = run_for(
        world, tmp_path / "out", model=tmp_path / "model", train=tmp_path / "t.jsonl", dev=tmp_path / "t.jsonl"
    )
    assert finetune(run, dataclasses.replace(FAST, epochs=12))["median"] == 1.0
    model, _ = TaskModel.load(run.out / "model")
    assert (model.encoder.embeddings.word.weight[size:] - table[size:]).abs().min() > 0
    assert main(["evaluate", "--model", str(run.out / "model"), "--data", str(run.dev)]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0
    with (tmp_path / "model" / "vocab.txt").open("a") as file:
        file.write("another\n")  # not an added token: this is another vocabulary
    (tmp_path / "model" / "added_tokens.json").unlink()
    (tmp_path / "model" / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=f"a tokenizer of {size + 1} entries and a model of {size}; put the tokenizer"):
        load_encoder(tmp_path / "model")


def test_errors_hold_no_terminal_escape(world: Path, tmp_path: Path) -> None:
    rows = [{"text": "a \x1b[2J \x9b2J film", "label": label} for label in "01"]  # one of them is predicted wrong
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    finetune(run_for(world, tmp_path / "out", dev=tmp_path / "d.jsonl"), FAST)
    text = (tmp_path / "out" / "errors.txt").read_text()
    assert "\x1b" not in text and "\x9b" not in text and r"a \x1b[2J \x9b2J film" in text


def test_any_electra_lends_its_encoder(world: Path, tmp_path: Path) -> None:
    import transformers

    given, tokenizer = load_encoder(world / "model")
    generator = Generator(given.config)
    generator.encoder.load_state_dict(given.state_dict())
    generator.save_pretrained(tmp_path / "generator")
    transformers.ElectraModel.from_pretrained(world / "model").save_pretrained(tmp_path / "bare")
    for name in ("generator", "bare"):
        tokenizer.save(tmp_path / name)
        found, _ = load_encoder(tmp_path / name)
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), given.parameters(), strict=True)), name


def test_existing_out_is_left_alone(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="nothing there is touched"):
        finetune(run_for(world, tmp_path / "out"), FAST)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(max_length=65), "max_length is 65, and .* at most 64 tokens; lower --max-length"),
        (dict(dev="unseen.tsv"), "unseen.tsv has the label '2' .* which training lacks"),
        (dict(train="none.tsv"), "none.tsv"),
        (dict(model="nowhere"), "nowhere has no model.safetensors"),
        (dict(model="wide"), "tokenizer of [0-9]+ entries and a model of 50"),
        (dict(learning_rate=-1), "learning_rate is -1.0; it must be positive"),
        (dict(layerwise_decay=2), "layerwise_decay is 2.0; it must be at most 1"),
        (dict(learning_rate=1e30, batch_size=8), "step [0-9]+: the loss is .*; lower --learning-rate"),
        (dict(label_column="nope"), "nope"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    if changes.get("model") == "wide":
        _, tokenizer = load_encoder(world / "model")
        Discriminator(NetworkConfig(vocab_size=50, **SIZES)).save_pretrained(tmp_path / "wide")  # type: ignore[arg-type]
        tokenizer.save(tmp_path / "wide")
    (tmp_path / "unseen.tsv").write_text("sentence\tlabel\na film\t2\n")
    before = sorted(tmp_path.rglob("*"))
    changes = {k: tmp_path / v if k in ("dev", "train", "model") else v for k, v in changes.items()}
    assert cli(world, tmp_path / "out", **changes) == 1
    error = capsys.readouterr().err
    assert re.search(f"electra-fast: .*{said}", error), error
    assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_seeds_by_number_or_by_name(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(world, tmp_path / "out", seeds=2) == 0
    assert set(json.loads((tmp_path / "out" / "results.json").read_text())["seeds"]) == {"0", "1"}
    assert "median" in capsys.readouterr().out
    with pytest.raises(ValueError, match="each once"):
        run_for(world, tmp_path / "x", seeds=(1, 1))


def test_an_electra_saved_whole_gives_both(world: Path, tmp_path: Path) -> None:
    """What pretrain writes: OUT/final/discriminator, and OUT/final/generator."""
    from electra_fast.config import ElectraConfig

    _, tokenizer = load_encoder(world / "model")
    names = ("pad", "unk", "cls", "sep", "mask")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    model = Electra(ElectraConfig.tiny(vocab_size=tokenizer.vocab_size, num_hidden_layers=1, **ids))
    model.save_pretrained(tmp_path / "final")
    for name in ("discriminator", "generator"):
        tokenizer.save(tmp_path / "final" / name)
        encoder, _ = load_encoder(tmp_path / "final" / name)
        own = getattr(model, name).encoder
        assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), own.parameters(), strict=True))

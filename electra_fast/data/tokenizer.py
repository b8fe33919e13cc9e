"""Text -> ids: BERT's WordPiece on the `tokenizers` library, trained reproducibly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from electra_fast.data.alphabet import alphabet_of
from electra_fast.data.normalizer import Normalizer, TrainingText
from electra_fast.data.published import ADDED, CONFIG, SPECIAL_MAP, Rules, added_tokens, read_rules, read_vocabulary
from electra_fast.special_ids import SpecialIds
from electra_fast.storage.digests import verify, write_files

SPECIAL_TOKENS = tuple(f"[{name.upper()}]" for name in SpecialIds._fields)  # ids 0 to 4 of a vocabulary trained here
UNKNOWN_WORD = "\U0001202b\U00012079\U000130c0"  # cuneiform and a hieroglyph, which no vocabulary has as one word
LONGEST_WORD = 200  # characters; a longer word is [UNK]: Google's limit (the library's own default is 100)
SMALLEST, LARGEST = 32, 4_000_000  # entries of a vocabulary that can be asked for


class Tokenizer:
    """A WordPiece vocabulary and the rules that cut text into it. `Tokenizer.load` or `.train` make one."""

    def __init__(self, content: bytes, source: str = "the tokenizer") -> None:
        """content: the bytes of a tokenizer.json, kept as they are; source: what an error calls them."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"{source} is no tokenizer.json that this version of tokenizers reads ({error}); load a vocab.txt "
                f"instead, or train a vocabulary: electra-fast prepare FILE --out DIR --vocab-size N"
            ) from error
        ids = self._tokenizer.get_vocab()
        missing = [token for token in SPECIAL_TOKENS if token not in ids]
        if missing:
            raise ValueError(
                f"{source} has no {', '.join(missing)} among its {len(ids)} entries; ELECTRA "
                f"needs {' '.join(SPECIAL_TOKENS)}: add them to the vocabulary, or train one with electra-fast prepare"
            )
        try:
            self._tokenizer.encode(UNKNOWN_WORD)
        except Exception as error:
            raise ValueError(
                f"{source} cannot cut a word that it does not know ({error}); write its model anew, or load a vocab.txt"
            ) from error
        if len(ids) != max(ids.values()) + 1:
            raise ValueError(
                f"{source} has {len(ids)} entries but ids up to {max(ids.values())}; ids without an entry cannot be "
                f"written to a vocab.txt: number the entries without holes"
            )
        self._content = content
        added = self._tokenizer.get_added_tokens_decoder()
        self.added = {token.content: id for id, token in added.items() if token.content not in SPECIAL_TOKENS}
        if any(added[id].special for id in self.added.values()):
            self._tokenizer = tokenizers.Tokenizer.from_str(_without_special_additions(content))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # a text that speaks of "[MASK]" must not hold the token
        self._normalize = None
        if isinstance(self._tokenizer.normalizer, normalizers.BertNormalizer) and not self.added:
            self._normalize = Normalizer(self._tokenizer.normalizer)
            self._bare = tokenizers.Tokenizer(self._tokenizer.model)
            self._bare.pre_tokenizer = self._tokenizer.pre_tokenizer
        self.pad_token_id, self.unk_token_id, self.cls_token_id, self.sep_token_id, self.mask_token_id = SpecialIds(
            *(ids[token] for token in SPECIAL_TOKENS)
        )
        self.vocab_size = len(ids)
        # How many entries stand before the tokens added at the end: a model may not have been enlarged for these yet.
        additions = set(self.added.values())
        self.base_size = next(size for size in range(len(ids), 0, -1) if size - 1 not in additions)

    @classmethod
    def load(cls, path: str | Path, *, lowercase: bool | None = None, strip_accents: bool | None = None) -> Tokenizer:
        """From a tokenizer.json, a vocab.txt (a token a line), or a directory that holds either.

        Beside a vocab.txt, or in the directory, stand the tokens that were added to the vocabulary, and for a vocab.txt
        how text is cut (see published.py); lowercase and strip_accents overrule that. A tokenizer.json carries its own
        rules. Raises FileNotFoundError or ValueError naming the file.
        """
        path = Path(path)
        is_directory = path.is_dir()
        if is_directory:
            names = [name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
            if not names:
                raise FileNotFoundError(
                    f"{path} holds neither tokenizer.json nor vocab.txt; name a directory that does"
                )
            verify(path, names[0], CONFIG, SPECIAL_MAP, ADDED)
            path = path / names[0]
        if not path.is_file():
            raise FileNotFoundError(f"there is no tokenizer {path}; name a tokenizer.json, a vocab.txt or a directory")
        if path.suffix != ".json":
            rules = read_rules(path.parent)
            lowercase = rules.lowercase if lowercase is None else lowercase
            strip_accents = rules.strip_accents if strip_accents is None else strip_accents
            rules = rules._replace(lowercase=lowercase, strip_accents=strip_accents)
            return cls(_with_added(_wordpiece(read_vocabulary(path), rules), path), str(path))
        if lowercase is not None or strip_accents is not None:
            raise ValueError(
                f"lowercase={lowercase}, strip_accents={strip_accents} are given with {path}, which carries its own "
                f"rules; leave them out, or load the vocab.txt"
            )
        tokenizer = cls(path.read_bytes(), str(path))
        content = _with_added(tokenizer._content, path) if is_directory else tokenizer._content
        return tokenizer if content == tokenizer._content else cls(content, str(path))

    @classmethod
    def train(
        cls,
        documents: Iterable[list[str]],
        vocab_size: int = 30522,
        *,
        lowercase: bool = True,
        strip_accents: bool | None = None,
    ) -> Tokenizer:
        """A vocabulary of at most vocab_size entries, a pure function of the text; less where the text is small.

        documents: lists of lines, read twice (so no generator). Raises ValueError for a vocab_size outside 32 to
        4,000,000, and for a text without words.
        """
        if not SMALLEST <= vocab_size <= LARGEST:
            raise ValueError(
                f"vocab_size is {vocab_size}; it must lie between {SMALLEST} and {LARGEST}, 30522 is usual"
            )
        if isinstance(documents, Iterator):
            raise ValueError("documents is an iterator, spent after one reading, and training reads twice; pass a list")
        rules = Rules(lowercase, strip_accents)
        library = _empty(rules)
        text = TrainingText(documents, Normalizer(library.normalizer), library.pre_tokenizer, LONGEST_WORD)
        alphabet, pinned = alphabet_of(library, documents, (vocab_size - len(SPECIAL_TOKENS)) // 2)
        if not alphabet:
            raise ValueError("the text holds no words to train a vocabulary on; check the files")
        # Left alone, the trainer numbers the continuing characters in the order of a hash table, and equal counts are
        # merged by number: two runs on one text differ. Given as leading entries, the characters have fixed numbers.
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[*SPECIAL_TOKENS, *pinned],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        library.normalizer = None  # done already
        library.train_from_iterator(text, trainer)
        ids = library.get_vocab()
        return cls(_wordpiece(sorted(ids, key=ids.__getitem__), rules))

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json, vocab.txt and the two files by which transformers.AutoTokenizer finds its way.

        Loaded there, the ids are the same. The directory is made if need be.
        """
        special = {f"{name}_token": token for name, token in zip(SpecialIds._fields, SPECIAL_TOKENS, strict=True)}
        config: dict[str, Any] = {
            # Not BertTokenizer: transformers 5 rebuilds that class from the vocabulary and so forgets the rules.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            **self._rules(),
            **special,
        }
        if self.added:
            added = json.loads(self._content)["added_tokens"]
            config["added_tokens_decoder"] = {str(entry.pop("id")): entry for entry in added}
        ids = self._tokenizer.get_vocab()
        texts = {
            "vocab.txt": "".join(f"{token}\n" for token in sorted(ids, key=ids.__getitem__)),
            "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
            "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
        }
        contents = {name: text.encode() for name, text in texts.items()}
        write_files(Path(directory), {"tokenizer.json": self._content, **contents})

    @property
    def sha256(self) -> str:
        """Of the bytes of tokenizer.json, as `sha256sum` gives it."""
        return hashlib.sha256(self._content).hexdigest()

    def encode(self, lines: list[str]) -> list[list[int]]:
        """The ids of each line, without [CLS] and [SEP]; no text yields a special token, [UNK] aside."""
        library = self._tokenizer
        if self._normalize is not None:
            library, lines = self._bare, list(map(self._normalize, lines))
        return [line.ids for line in library.encode_batch_fast(lines, add_special_tokens=False)]

    def encode_offsets(self, line: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a line, as `encode` gives them, and the characters of the line that each is: [start, end)."""
        found = self._tokenizer.encode(line, add_special_tokens=False)
        return found.ids, found.offsets

    @property
    def strips_accents(self) -> bool:
        """Whether marks are taken from the characters of a text: accents, and vowel signs of some scripts."""
        rules = self._tokenizer.normalizer
        strips = isinstance(rules, normalizers.BertNormalizer) and rules.strip_accents
        return bool(rules.lowercase if strips is None else strips)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def token(self, id: int) -> str:
        """The vocabulary entry of an id; raises IndexError outside the vocabulary."""
        token = self._tokenizer.id_to_token(id) if id >= 0 else None
        if token is None:
            raise IndexError(f"id {id} is outside the vocabulary of {self.vocab_size} entries")
        return token

    def continues(self, rows: int) -> list[bool]:
        """Which of `rows` entries continue a word: those that begin with ##; False beyond the vocabulary."""
        return [i < self.vocab_size and self.token(i).startswith("##") for i in range(rows)]

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self._content,)

    def _rules(self) -> dict[str, bool | None]:
        normalizer = self._tokenizer.normalizer
        if not isinstance(normalizer, normalizers.BertNormalizer):
            return {}
        return {
            "do_lower_case": normalizer.lowercase,
            "strip_accents": normalizer.strip_accents,
            "tokenize_chinese_chars": normalizer.handle_chinese_chars,
        }


def _empty(rules: Rules) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.WordPiece({}, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD))
    library.normalizer = normalizers.BertNormalizer(
        lowercase=rules.lowercase, strip_accents=rules.strip_accents, handle_chinese_chars=rules.split_chinese
    )
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    return library


def _wordpiece(tokens: list[str], rules: Rules) -> bytes:
    """The tokenizer.json of a vocabulary in the order of its ids."""
    ids = {token: number for number, token in enumerate(tokens)}
    library = _empty(rules)
    library.model = models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    if ids.keys() >= set(SPECIAL_TOKENS):  # else the constructor refuses it, naming what is missing
        library.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
        library.add_special_tokens(list(SPECIAL_TOKENS))
    return library.to_str(pretty=True).encode()


def _with_added(content: bytes, path: Path) -> bytes:
    """A tokenizer.json with the tokens that the files beside `path` add to it; unchanged if there are none."""
    library = tokenizers.Tokenizer.from_str(content.decode())
    there = {token.content for token in library.get_added_tokens_decoder().values()}
    added = [token for token in added_tokens(path.parent, library.get_vocab()) if token.content not in there]
    if not added:
        return content
    library.add_tokens(added)
    return library.to_str(pretty=True).encode()


def _without_special_additions(content: bytes) -> str:
    """A tokenizer.json in which only ELECTRA's special tokens are special, so that a text can hold the others.

    The library either finds all special tokens in a text, [MASK] too, or none.
    """
    values = json.loads(content)
    for token in values["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS
    return json.dumps(values)

"""The ids of the five special tokens: their names and their order stand here alone."""

from __future__ import annotations

from typing import Any, NamedTuple


class SpecialIds(NamedTuple):
    """The ids of [PAD], [UNK], [CLS], [SEP] and [MASK] in a vocabulary."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    @classmethod
    def of(cls, owner: Any) -> SpecialIds:
        """The ids that a config or a tokenizer has as `pad_token_id`, `unk_token_id` and so on."""
        return cls(*(getattr(owner, f"{name}_token_id") for name in cls._fields))

    @property
    def token_ids(self) -> dict[str, int]:
        """The ids under the names that a config and a tokenizer give them: `pad_token_id` and so on."""
        return {f"{name}_token_id": value for name, value in self._asdict().items()}

    @property
    def never_masked(self) -> list[int]:
        """The ids of the tokens that masking never chooses: all but [UNK]."""
        return [self.pad, self.cls, self.sep, self.mask]

"""Logprobs as OpenAI writes them. Tokens are shown as their own texts; bytes are null where one is half a character."""

from typing import Any

from ..serving.answer import Likelihood
from ..tokenizer import REPLACEMENT, Tokenizer


def entry(found: Likelihood, tokenizer: Tokenizer) -> dict[str, Any]:
    """As in chats and responses."""
    top = [_one(token, logprob, tokenizer) for token, logprob in found.top]
    return {**_one(found.token, found.logprob, tokenizer), "top_logprobs": top}


def _one(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    text = tokenizer.decode([token], special=True)
    return {"token": text, "logprob": logprob, "bytes": None if REPLACEMENT in text else list(text.encode())}


class Legacy:
    """As in completions: columns, and where each token's text begins."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0

    def columns(self, found: list[Likelihood]) -> dict[str, Any]:
        """Columns for the next tokens."""
        texts = [self._text(each.token) for each in found]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [each.logprob for each in found],
            "top_logprobs": [{self._text(token): logprob for token, logprob in each.top} for each in found],
            "text_offset": offsets,
        }

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([token], special=True)

"""Examples that a tokeniser cannot encode: texts that would not be plain text, refused conversations."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain

import pyarrow as pa

from ray_l4.tasks.rows import BadRecords
from ray_l4.tasks.slices import slices_of
from ray_l4.text.prompts import why_refused
from ray_l4.text.tokenizer import TaskTokenizer

_TEXTS = ("context", "question", "answer")


def without_unencodable(examples: pa.Table, tokenizer: TaskTokenizer, source: str, max_bad_fraction: float) -> pa.Table:
    """Return ``examples`` without those that cannot be encoded.

    These are conversations that the chat template refuses, and texts with the name of a special token which cannot be
    encoded as text. Most tokenisers encode every such name as text. In some, among them SentencePiece's unigram models,
    it is an entry of the vocabulary like any word.

    Args:
        examples: columns context, question, answer, references, sample_id and, from chat data, meta.
        source: the data, for messages.
        max_bad_fraction: largest tolerated share of such examples (``data.max_bad_fraction``).

    Raises:
        DataError: there are more of them.
    """
    named = re.compile("|".join(map(re.escape, tokenizer.reserved_names())))
    bad = BadRecords(source, max_bad_fraction)
    kept = []
    rows = chain.from_iterable(part.to_pylist() for part in slices_of(examples))
    for index, row in enumerate(rows):
        texts = [*(row[column] for column in _TEXTS), *row["references"]]
        why = why_refused(row, tokenizer) or _why_unencodable(texts, tokenizer, named)
        if why is None:
            kept.append(index)
        else:
            bad.add(row["sample_id"], why)
    bad.check(len(kept))
    return examples if len(kept) == examples.num_rows else examples.take(pa.array(kept, pa.int64()))


def _why_unencodable(texts: Iterable[str], tokenizer: TaskTokenizer, named: re.Pattern[str]) -> str | None:
    """Return why one of ``texts`` cannot be encoded. Only those that are ``named`` are tried, since that is faster."""
    normalizer = tokenizer.hf.backend_tokenizer.normalizer
    for text in texts:
        # A name may only appear once the tokeniser has normalised the text, which may change its case as well.
        shown = text if normalizer is None else normalizer.normalize_str(text)
        if named.search(shown) and (why := tokenizer.why_unencodable(text)):
            return why
    return None

"""Examples whose texts a tokeniser cannot encode as the plain text they are."""

from __future__ import annotations

import re
import unicodedata

import pyarrow as pa

from ray_l4.tasks.rows import BadRecords
from ray_l4.text.tokenizer import TaskTokenizer

_TEXTS = ("context", "question", "answer")


def without_unencodable(examples: pa.Table, tokenizer: TaskTokenizer, source: str, max_bad_fraction: float) -> pa.Table:
    """Return ``examples`` without those that contain the name of a special token which cannot be encoded as text.

    Most tokenisers encode every such name as text. In some, among them SentencePiece's unigram models, it is an entry
    of the vocabulary like any word.

    Args:
        examples: columns context, question, answer, references, sample_id.
        source: the data, for messages.
        max_bad_fraction: largest tolerated share of such examples (``data.max_bad_fraction``).

    Raises:
        DataError: there are more of them.
    """
    named = re.compile("|".join(map(re.escape, tokenizer.reserved_names())))
    bad = BadRecords(source, max_bad_fraction)
    kept = []
    for index, row in enumerate(examples.select([*_TEXTS, "references", "sample_id"]).to_pylist()):
        for text in [*(row[column] for column in _TEXTS), *row["references"]]:
            # A name may only appear once the tokeniser has normalised the text.
            if named.search(unicodedata.normalize("NFKC", text)) and (why := tokenizer.why_unencodable(text)):
                bad.add(row["sample_id"], why)
                break
        else:
            kept.append(index)
    bad.check(len(kept))
    return examples if len(kept) == examples.num_rows else examples.take(pa.array(kept, pa.int64()))

"""Whether an example can be learned by the model that is served, as training would make a sequence of it."""

from __future__ import annotations

import pyarrow as pa

from ray_l4.serve.problems import RequestError
from ray_l4.store.inbox.example import Example
from ray_l4.tasks.schema import EXAMPLES
from ray_l4.text.assembly import assemble
from ray_l4.text.prompts import why_refused
from ray_l4.text.tokenizer import TaskTokenizer


def refuse_unlearnable(example: Example, tokenizer: TaskTokenizer, task: str, longest: int) -> None:
    """Raise RequestError if training would leave an example out.

    ``task``: any that the tokeniser knows; the length does not depend on it. ``longest``: that of a training sequence
    in tokens, of which question and answer must leave out nothing. A long context is cut.
    """
    row = {"context": example.context, "question": example.question, "answer": example.answers[0]}
    more = {"references": [*example.answers], "task": task, "sample_id": example.id, "meta": example.meta}
    texts = (example.context, example.question, *example.answers)
    why = why_refused(row | {"meta": example.meta}, tokenizer)
    why = why or next((found for text in texts if (found := tokenizer.why_unencodable(text))), None)
    if why is not None:
        raise RequestError(400, f"the example cannot be learned: {why}", "invalid_value")
    _, dropped = assemble(pa.Table.from_pylist([row | more], schema=EXAMPLES), tokenizer, longest)
    if dropped:
        message = f"the example is too long to be learned: {dropped[0].reason}. Shorten the answer or the question."
        raise RequestError(400, message, "context_length_exceeded", "answer")

"""Base tokenisers: that of a pretrained model, or a byte-level BPE trained on the text of the stream."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ray_l4.errors import ModelError
from ray_l4.text.model_location import loading_error, located

END_OF_TEXT = "<|endoftext|>"


def load_base(name: str | Path, trusted: bool = False) -> PreTrainedTokenizerBase:
    """Return the fast tokeniser of a pretrained model, given by hub name or folder.

    A folder that contains only ``vocab.json`` and ``merges.txt`` is read as GPT-2's. ``trusted``: let code that comes
    with the model run (``model.trust_custom_code``).

    Raises:
        ModelError: the tokeniser cannot be found or loaded, has no fast version, is empty, or has no end-of-sequence
            token.
    """
    options = located(str(name), trusted=trusted)
    from transformers import AutoTokenizer  # loads PyTorch, which a run from scratch does not need here

    try:
        base = AutoTokenizer.from_pretrained(str(name), **options, **_type_hint(Path(name)))
        is_empty = not base("a", add_special_tokens=False)["input_ids"]
    except Exception as error:  # the libraries raise OSError, ValueError, KeyError and plain Exception here
        raise ModelError(
            f"Cannot load a tokeniser from '{name}': {type(error).__name__}: {loading_error(error)} Expected a folder "
            "with tokenizer.json (or vocab.json and merges.txt) and a class that fits it in tokenizer_config.json, or "
            "the name of a model on the hub that this machine can reach or has in its cache. Correct model.name, or "
            "download the model again."
        ) from error
    if not base.is_fast:
        raise ModelError(f"The tokeniser of '{name}' has no fast version; expected a folder with tokenizer.json.")
    # transformers 5 silently builds an EMPTY tokeniser if the vocabulary files are missing.
    if is_empty:
        raise ModelError(
            f"The tokeniser of '{name}' has an empty vocabulary: the folder lacks tokenizer.json, or vocab.json and "
            "merges.txt. Save the tokeniser in the model's folder."
        )
    if base.eos_token_id is None:
        raise ModelError(
            f"The tokeniser of '{name}' has no end-of-sequence token, which ends every answer. Set eos_token in its "
            "tokenizer_config.json."
        )
    return base


def _type_hint(folder: Path) -> dict[str, str]:
    """Return the argument that AutoTokenizer needs for a bare pair of GPT-2 files; otherwise an empty dict."""
    bare_pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    described = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "config.json"))
    return {"tokenizer_type": "gpt2"} if bare_pair and not described else {}


def train_base(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE (like GPT-2's) of at most ``vocabulary`` entries on ``texts``.

    Every text is stripped and gets one leading space, as in encoding. The result depends on the texts alone.
    ``<|endoftext|>`` is the end-of-sequence token.

    Raises:
        ModelError: there is no text, or the vocabulary is too small for the 256 bytes and ``<|endoftext|>``.
    """
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + 1
    if vocabulary < smallest:
        raise ModelError(f"A byte-level vocabulary needs at least {smallest} entries, but {vocabulary} were requested.")
    lines = (f" {stripped}" for text in texts if (stripped := text.strip()))
    first = next(lines, None)
    if first is None:
        raise ModelError("Cannot train a tokeniser: the stream contains no text. Check the tasks' training data.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain([first], lines), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)

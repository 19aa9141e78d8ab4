"""Tokenisers with chat templates, and a small instruct model."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from ray_l4.tasks.chat import Message
from ray_l4.text.base_tokenizer import train_base
from ray_l4.text.tokenizer import TaskTokenizer

TASKS = ("capitals", "polite")

CORPUS = [
    "You are a helpful assistant",
    "What is the capital of France? Paris",
    "What is the capital of Italy? Rome",
    "system user assistant model",
    "Answer in one word. Translate cheese, please",
]

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As SmolLM2's: a system prompt of its own where none is given."""

HEADERS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|header|>' + message['role'] + '<|end_header|>\n\n' + message['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>assistant<|end_header|>\n\n' }}{% endif %}"
)
"""As Llama 3's: a beginning of the text, and marks of three kinds."""

NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' + message['content'] | trim"
    " + '<turn_end>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
"""As Gemma's: no system prompt, turns alternate, and the assistant has another name."""

BRACKETS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""As Llama 2's: the marks are plain text, and there is no prompt for an answer but the end of the question."""

THINKING = CHATML.replace(
    "message['role'] + '\n' + message['content']",
    "message['role'] + '\n' + ('<think>\n\n</think>\n\n' if loop.last and message['role'] == 'assistant' else '')"
    " + message['content']",
)
"""As Qwen 3's: an empty thought before an answer that has none."""

DATED = "{{ 'Today is ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
"""As Llama 3.2's: the day on which the prompt is rendered."""

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "no system": NO_SYSTEM,
    "brackets": BRACKETS,
    "thinking": THINKING,
    "dated": DATED,
}
MARKS = ["<|im_start|>", "<|im_end|>", "<|header|>", "<|end_header|>", "<|eot|>", "<turn>", "<turn_end>", "<s>"]


def base(template: str | None = CHATML, eos: str = "<|im_end|>") -> PreTrainedTokenizerBase:
    """Train a byte-level tokeniser with the marks of all templates."""
    hf = train_base(CORPUS * 4, 400)
    hf.add_tokens(MARKS, special_tokens=True)
    hf.bos_token, hf.eos_token = "<s>", eos
    hf.chat_template = template
    return hf


def tokenizer(folder: Path, template: str | None = CHATML, chat: bool = True, eos: str = "<|im_end|>") -> TaskTokenizer:
    """Save such a tokeniser in ``folder`` and load it with the added tokens."""
    base(template, eos).save_pretrained(folder)
    return TaskTokenizer.pretrained(folder, TASKS, 2, chat=chat)


def said(*texts: str, system: str | None = None) -> list[Message]:
    """Return a conversation of alternating turns, the user's first."""
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for number, text in enumerate(texts):
        turns.append({"role": "assistant" if number % 2 else "user", "content": text})
    return turns


TAUGHT = [
    said("What is the capital of France?", "The capital of France", system="Answer, please"),
    said("What is the capital of Italy?", "The capital of Italy"),
    said("Translate cheese", "Translate one word", system="You are a helpful assistant"),
    said("Translate word", "please", "capital of France?", "What is France?"),
]
"""What the small instruct model knows: to talk in turns, but none of the answers that tests teach it."""


def save_instruct(folder: Path, template: str | None = CHATML, steps: int = 60, eos: str = "<|im_end|>") -> Path:
    """Save a small model in Llama's shape that has learned to talk in its tokeniser's chat template."""
    hf = base(template, eos)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        vocab_size=len(hf),
        initializer_range=0.2,  # large enough that adapters alone can teach it
        bos_token_id=hf.bos_token_id,
        eos_token_id=hf.eos_token_id,
    )
    torch.manual_seed(5)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        ids = torch.tensor([hf.apply_chat_template(TAUGHT[step % len(TAUGHT)])["input_ids"]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    hf.save_pretrained(folder)
    return folder


def table(*rows: tuple[str, str, str], meta: str = "") -> pa.Table:
    """Build examples of context, question and answer."""
    return pa.Table.from_pylist(
        [
            {
                "context": context,
                "question": question,
                "answer": answer,
                "references": [answer],
                "task": TASKS[0],
                "sample_id": str(number),
                "meta": meta,
            }
            for number, (context, question, answer) in enumerate(rows)
        ]
    )

"""Prompts in a model's chat template: the tokeniser's own ids, whatever the data's text contains."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from ray_l4.errors import DataError, ModelError
from ray_l4.tasks.chat import Message
from ray_l4.text.assembly import assemble, assemble_prompts, longest_answer, with_answers
from ray_l4.text.batches import build_batch
from ray_l4.text.plain_text import without_unencodable
from ray_l4.text.replay import PseudoExample, generated_table, parse
from ray_l4.text.test_sets import build_items
from ray_l4.text.tokenizer import TaskTokenizer
from tests.text import chat_fixtures as chats

Build = Callable[[str], TaskTokenizer]


@pytest.fixture(scope="session")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The tokeniser with one of the templates."""
    made: dict[str, TaskTokenizer] = {}

    def get(name: str) -> TaskTokenizer:
        if name not in made:
            made[name] = chats.tokenizer(tmp_path_factory.mktemp("chat"), chats.TEMPLATES[name])
        return made[name]

    return get


def example(turns: Sequence[Message], answer: str = "Paris") -> pa.Table:
    """Build one example of chat data."""
    *earlier, question = turns
    meta = json.dumps({"messages": earlier}) if earlier else ""
    return chats.table(("shown only" if earlier else "", question["content"], answer), meta=meta)


CONVERSATIONS = {
    "a question": chats.said("What is the capital of France?"),
    "a system prompt": chats.said("What is the capital of France?", system="Answer in one word."),
    "several turns": chats.said("Hello", "Hi there", "What is the capital of Italy?"),
    "all": chats.said("Hello", "Hi\n\nthere", "And\tnow: é?", "No", "capital?", system="Be brief."),
    "a blank system prompt": chats.said("capital?", system=""),
}


@pytest.mark.parametrize("name", ["chatml", "headers", "no system", "brackets"])
@pytest.mark.parametrize("case", CONVERSATIONS)
def test_ids_are_those_of_the_tokenisers_own_template(tok: Build, name: str, case: str) -> None:
    """In training and in scoring alike; the answer is followed by the template's end of turn."""
    tokenizer, turns = tok(name), CONVERSATIONS[case]
    if name == "no system" and turns[0]["role"] == "system":  # it stands in the first question
        system, question, *rest = turns
        text = f"{system['content']}\n\n{question['content']}".strip()
        turns = [{"role": "user", "content": text}, *rest]
    expected = tokenizer.hf.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    table, dropped = assemble(example(CONVERSATIONS[case]), tokenizer, 500)
    assert dropped == []
    length = table["prompt_length"][0].as_py()
    assert table["ids"][0].as_py()[:length] == expected
    prompts, _ = assemble_prompts(example(CONVERSATIONS[case]), tokenizer, 500, 10)
    assert prompts["ids"].to_pylist() == [expected]
    answered = [*turns, {"role": "assistant", "content": "Paris"}]
    whole = tokenizer.hf.apply_chat_template(answered)["input_ids"]
    if name != "brackets":  # it writes blanks around an answer
        assert whole[: len(table["ids"][0]) + 1] == [*table["ids"][0].as_py(), tokenizer.eos]


def test_a_template_may_open_the_answer(tok: Build) -> None:
    """What it writes into every answer belongs to the prompt."""
    (prompt,) = assemble_prompts(example(CONVERSATIONS["a question"]), tok("thinking"), 500, 10)[0]["ids"].to_pylist()
    assert tok("thinking").hf.decode(prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ("%A, %d %B %Y", "Friday, 26 July 2024"),
        ("%-m/%-d/%y", "7/26/24"),
        ("%Y-%m-%dT%H:%M:%S", "2024-07-26T00:00:00"),
        ("%F %T, %I:%M %p", "2024-07-26 00:00:00, 12:00 AM"),
        ("%e %b", "26 Jul"),
    ],
)
def test_the_fixed_day_is_shown_as_a_template_wants_it(tmp_path: Path, wanted: str, shown: str) -> None:
    tokenizer = chats.tokenizer(tmp_path, "{{ strftime_now('" + wanted + "') + '\n' }}" + chats.CHATML)
    (prompt,) = assemble_prompts(example(CONVERSATIONS["a question"]), tokenizer, 500, 10)[0]["ids"].to_pylist()
    assert tokenizer.hf.decode(prompt).startswith(f"{shown}\n<|im_start|>system")


def test_the_tokens_of_a_run_do_not_depend_on_its_day(tok: Build) -> None:
    (prompt,) = assemble_prompts(example(CONVERSATIONS["a question"]), tok("dated"), 500, 10)[0]["ids"].to_pylist()
    text = tok("dated").hf.decode(prompt)
    assert text.startswith("Today is 26 Jul 2024\n<|im_start|>system")
    assert datetime.now(UTC).strftime("%Y") not in text


@pytest.mark.parametrize("name", chats.TEMPLATES)
@pytest.mark.parametrize(
    "text",
    [
        "<|im_end|>",
        "a <|im_start|>user\nb",
        "<|eot|><s>",
        "[/INST] <turn_end> x",
        "__ans__ and __capitals__",
        "<|endoftext|>",
    ],
)
def test_marks_in_the_data_are_plain_text(tok: Build, name: str, text: str) -> None:
    tokenizer = tok(name)
    clean, _ = assemble(chats.table(("Hello", "Hello", "Hello")), tokenizer, 500)
    table, dropped = assemble(chats.table((text, text, text)), tokenizer, 500)
    assert dropped == []
    special = set(tokenizer.hf.added_tokens_decoder)

    def marks(row: pa.Table) -> list[int]:
        return [token for token in row["ids"][0].as_py() if token in special]

    assert marks(table) == marks(clean)
    said = tokenizer.hf.decode(table["ids"][0].as_py())
    assert said.count(text.strip()) >= 3


@pytest.mark.parametrize(
    ("normalizer", "text"),
    [(normalizers.Lowercase(), "a <|IM_END|> b"), (normalizers.NFKC(), "a \uff1c|im_end|> b")],
    ids=["lower case", "compatibility"],
)
def test_marks_that_normalising_makes_are_plain_text_too(
    tmp_path: Path, normalizer: normalizers.Normalizer, text: str
) -> None:
    """Where the tokeniser looks for special tokens after it has normalised the text."""
    base = chats.base(None)
    base.add_tokens([AddedToken("<|im_end|>", special=True, normalized=True)], special_tokens=True)
    base.backend_tokenizer.normalizer = normalizer
    base.chat_template = chats.CHATML
    base.save_pretrained(tmp_path)
    tokenizer = TaskTokenizer.pretrained(tmp_path, chats.TASKS, 2)
    assert tokenizer.eos in tokenizer.hf(text)["input_ids"], "of itself, it reads the text as the token"
    turns = chats.said(text, text, "capital?", system=text)
    (row,) = assemble(example(turns, text), tokenizer, 500)[0].to_pylist()
    assert row["ids"].count(tokenizer.eos) == len(turns), "one at the end of each turn"


TEXT = st.text(alphabet="ab é.?\n<|im_end|>", max_size=20)


@given(
    rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=3), name=st.sampled_from(sorted(chats.TEMPLATES))
)
def test_a_real_examples_lm_sequence_parses_into_that_example(
    tok: Build, rows: list[tuple[str, str, str]], name: str
) -> None:
    """What replay generates is rendered and divided as real examples are."""
    tokenizer = tok(name)
    table, _ = assemble(chats.table(*rows), tokenizer, 400)
    for row in table.to_pylist():
        parsed = parse([row["gen"], *row["ids"], *tokenizer.lm_end], tokenizer)
        if name == "brackets" and not isinstance(parsed, PseudoExample):
            continue  # plain marks may merge with the question
        assert isinstance(parsed, PseudoExample)
        again = generated_table([parsed], [row["task"]], tokenizer, 1).to_pylist()[0]
        assert {key: again[key] for key in ("ids", "prompt_length", "gen", "task")} == {
            key: row[key] for key in ("ids", "prompt_length", "gen", "task")
        }


def test_several_turns_parse_at_the_last_answer(tok: Build) -> None:
    tokenizer = tok("chatml")
    (row,) = assemble(example(CONVERSATIONS["all"]), tokenizer, 400)[0].to_pylist()
    parsed = parse([row["gen"], *row["ids"], *tokenizer.lm_end], tokenizer)
    assert isinstance(parsed, PseudoExample)
    assert tokenizer.decode(parsed.answer) == "Paris"
    assert len(parsed.question) + len(tokenizer.answer_start) == row["prompt_length"]


def test_generated_text_that_is_no_conversation_with_an_answer(tok: Build) -> None:
    tokenizer = tok("chatml")
    (row,) = assemble(example(CONVERSATIONS["several turns"]), tokenizer, 400)[0].to_pylist()
    gen, eot, end = row["gen"], tokenizer.eos, tokenizer.lm_end[-1]
    prompt, answer = row["ids"][: row["prompt_length"]], row["ids"][row["prompt_length"] :]
    start = tokenizer.hf.convert_tokens_to_ids("<|im_start|>")

    def verdict(*ids: int) -> str:
        found = parse([gen, *ids], tokenizer)
        return "valid" if isinstance(found, PseudoExample) else found

    assert verdict(*prompt, *answer, eot, end) == "valid"
    assert verdict(*prompt, *answer, eot, end, *prompt) == "valid", "nothing counts after the end"
    assert verdict(*prompt, *answer) == "valid", "cut off at the maximum length"
    assert verdict(*prompt, eot, end) == "valid", "an empty answer"
    assert verdict(*answer, end) == verdict(end) == "no turn with an answer"
    assert verdict(*prompt[:8], end) == "no turn with an answer"
    assert verdict(*prompt, *answer, eot, *answer, end) == "text after the answer"
    assert verdict(*prompt, *answer, start, *answer, end) == "a mark of the chat template in the answer"


def test_the_last_targets_are_the_end_of_the_turn_and_of_the_example(tok: Build) -> None:
    tokenizer = tok("headers")
    table, _ = assemble(example(CONVERSATIONS["a question"]), tokenizer, 400)
    (row,) = table.to_pylist()
    start = list(tokenizer.lm_start)
    assert start == row["ids"][: len(start)] and tokenizer.hf.decode(start) == "<s><|header|>"
    batch = build_batch(table, pa.array([0]).to_numpy(), ("qa", "lm"), tokenizer, 5.0)
    eot = tokenizer.hf.convert_tokens_to_ids("<|eot|>")
    answer = row["ids"][row["prompt_length"] :]
    assert batch.heads["qa"].targets_N.tolist() == [*answer, eot]
    assert batch.heads["lm"].targets_N.tolist() == [*row["ids"][len(start) :], eot, tokenizer.lm_end[-1]]
    assert batch.input_ids_RT[1].tolist() == [row["gen"], *row["ids"], eot]
    assert set(batch.heads["lm"].weights_N.tolist()) == {1.0}


@pytest.mark.parametrize("name", ["chatml", "headers", "no system"])
def test_a_long_context_is_cut_between_whole_marks(tok: Build, name: str) -> None:
    """Of a context and a question in one turn, the end of the context goes; no more than needed."""
    tokenizer = tok(name)
    examples = chats.table(("What is the capital of Italy? " * 3, "capital of France?", "Paris"))
    (whole,) = assemble(examples, tokenizer, 400)[0].to_pylist()
    special = set(tokenizer.hf.added_tokens_decoder)
    marks = [token for token in whole["ids"] if token in special]
    fewest = len(assemble(chats.table(("", "capital of France?", "Paris")), tokenizer, 400)[0]["ids"][0])
    for limit in range(len(whole["ids"]) + 2, fewest + 4, -1):
        (row,) = assemble(examples, tokenizer, limit)[0].to_pylist()
        assert len(row["ids"]) == limit - 2, "GEN and the end of the turn are part of the LM sequence"
        assert [token for token in row["ids"] if token in special] == marks
        assert tokenizer.hf.decode(row["ids"][: row["prompt_length"]]).count("capital of France?") == 1
    table, dropped = assemble(examples, tokenizer, fewest)
    assert table.num_rows == 0
    assert "the chat template's own" in dropped[0].reason


def test_of_a_long_conversation_the_oldest_turns_are_left_out_first(tok: Build) -> None:
    tokenizer = tok("chatml")
    turns = chats.said("Hello", "Hi", "Italy?", "Rome", "France?", system="Answer in one word.")
    examples, texts = example(turns), {}
    whole = len(assemble(examples, tokenizer, 400)[0]["ids"][0])
    for limit in range(whole + 2, 20, -1):
        table, _ = assemble(examples, tokenizer, limit)
        if table.num_rows:
            assert len(table["ids"][0]) + 2 <= limit
            texts[tokenizer.hf.decode(table["ids"][0].as_py())] = limit
    kept = list(texts)
    without = [
        tokenizer.hf.apply_chat_template([*turns[:1], *rest], add_generation_prompt=True, tokenize=False) + "Paris"
        for rest in (turns[1:], turns[3:], turns[5:])
    ]
    assert kept[:3] == without
    assert all(text.startswith("<|im_start|>system\n") for text in kept)
    assert kept[3] != kept[2] and len(kept[3]) < len(kept[2]), "at last the system prompt is cut at its end"
    assert all(text.endswith("<|im_start|>user\nFrance?<|im_end|>\n<|im_start|>assistant\nParis") for text in kept)


def test_answers_are_cut_and_replaced_within_the_limit(tok: Build) -> None:
    tokenizer = tok("chatml")
    table, _ = assemble(example(CONVERSATIONS["a question"]), tokenizer, 80)
    length = table["prompt_length"][0].as_py()
    for text in ("Rome", "Paris " * 30, "<|im_end|>"):
        (row,) = with_answers(table, [text], tokenizer, 80).to_pylist()
        assert len(row["ids"]) + 2 <= 80
        assert row["ids"][:length] == table["ids"][0].as_py()[:length]
        assert text.startswith(tokenizer.hf.decode(row["ids"][length:]))
    assert with_answers(table, ["Paris"], tokenizer, 80) == table
    examples = example(CONVERSATIONS["a question"])
    assert longest_answer(examples, tokenizer) == len(table["ids"][0]) - length
    assert build_items(examples, "em", tokenizer)[0].references == ("Paris",)


def test_a_conversation_that_the_template_refuses_is_a_bad_record(tok: Build) -> None:
    """In training and test data alike; the reason names the remedy."""
    refused = chats.said("a", "b", "c")[1:]
    examples = pa.concat_tables(
        [example(CONVERSATIONS["all"]), example(refused), example(CONVERSATIONS["several turns"])]
    )
    assert without_unencodable(examples, tok("chatml"), "task t, test", 0.0) is examples
    kept = without_unencodable(examples, tok("no system"), "task t, test", 0.5)
    assert kept["question"].to_pylist() == ["capital?", "What is the capital of Italy?"]
    assert assemble_prompts(kept, tok("no system"), 400, 10)[0].num_rows == 2
    reason = r"task t, test: 1 of 3 records[\s\S]*refuses a conversation of assistant, user[\s\S]*Roles must alternate"
    with pytest.raises(DataError, match=rf"{reason}[\s\S]*model\.chat_template: none") as caught:
        without_unencodable(examples, tok("no system"), "task t, test", 0.1)
    assert "Shorten" not in str(caught.value)


def test_a_system_prompt_in_the_first_question_is_cut_first(tok: Build) -> None:
    tokenizer = tok("no system")
    turns = chats.said("capital?", system="Answer in one word. " * 9)
    (whole,) = assemble_prompts(example(turns), tokenizer, 500, 10)[0]["ids"].to_pylist()
    (cut,) = assemble_prompts(example(turns), tokenizer, len(whole), 10)[0]["ids"].to_pylist()
    text = tokenizer.hf.decode(cut)
    assert len(cut) < len(whole) and text.startswith("<s><turn>user\nAnswer in one word.")
    assert text.endswith("\n\ncapital?<turn_end>\n<turn>model\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "puts no text of its own between"),
        ("<|im_start|>{{ messages[-1]['content'] }}<|im_end|>", "does not render each of a conversation of user"),
        ("{{ raise_exception('never') }}", "refuses a conversation of user, assistant: never"),
        ("{{ messages.oops.x }}", "does not render a question and its answer"),
    ],
)
def test_a_template_that_cannot_be_used_is_an_error(template: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"{message}[\s\S]*model\.chat_template: none"):
        chats.tokenizer(tmp_path, template)


def test_the_end_of_a_turn_need_not_be_the_end_of_sequence(tmp_path: Path) -> None:
    tokenizer = chats.tokenizer(tmp_path / "one", chats.HEADERS, eos="<|endoftext|>")
    assert tokenizer.eos == tokenizer.hf.convert_tokens_to_ids("<|eot|>")
    plain = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    prompted = plain + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer = chats.tokenizer(tmp_path / "two", prompted, eos="<|endoftext|>")
    assert tokenizer.eos == tokenizer.hf.convert_tokens_to_ids("<|endoftext|>"), "a template without special tokens"


def test_blanks_before_an_answer_belong_to_the_answer(tok: Build) -> None:
    tokenizer = tok("brackets")
    (row,) = assemble(example(CONVERSATIONS["a question"]), tokenizer, 400)[0].to_pylist()
    assert tokenizer.hf.decode(row["ids"][row["prompt_length"] :]) == " Paris"


def test_without_a_template_nothing_changes(tmp_path: Path) -> None:
    """Ids, special ids and files of a tokeniser without a template, and of one whose template is not wanted."""
    bare = chats.tokenizer(tmp_path / "bare", None)
    unwanted = chats.tokenizer(tmp_path / "unwanted", chats.CHATML, chat=False)
    assert bare.chat is None and unwanted.chat is None
    examples = chats.table(("Hello there", "capital of France?", "Paris"))
    expected = [*bare.encode("Hello there"), *bare.encode("capital of France?"), bare.ans, *bare.encode("Paris")]
    for tokenizer in (bare, unwanted):
        assert assemble(examples, tokenizer, 100)[0]["ids"].to_pylist() == [expected]
        assert (tokenizer.lm_end, tokenizer.answer_start) == ((tokenizer.eos,), (tokenizer.ans,))
        assert tokenizer.size == len(tokenizer.hf) == bare.size
        tokenizer.save(tmp_path / "saved")
        record = json.loads((tmp_path / "saved" / "task_tokens.json").read_text())
        assert record.keys() == {"gen", "spares", "fresh"}
    assert TaskTokenizer.load(tmp_path / "saved").chat is None


def test_a_saved_tokeniser_keeps_its_template(tok: Build, tmp_path: Path) -> None:
    tokenizer = tok("headers").assign("later")
    tokenizer.save(tmp_path)
    loaded = TaskTokenizer.load(tmp_path)
    examples = example(CONVERSATIONS["all"])
    assert assemble(examples, loaded, 400)[0] == assemble(examples, tokenizer, 400)[0]
    assert (loaded.eos, loaded.lm_end, loaded.gen) == (tokenizer.eos, tokenizer.lm_end, tokenizer.gen)
    assert loaded.gen["later"] in loaded.task_tokens and loaded.size == tokenizer.size

"""CNN/DailyMail: original stories and published subsets, hand-made and real."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import DataError
from ray_l4.tasks.cnndm import END_OF_SENTENCE, article_key, split_story, with_close_dots
from ray_l4.tasks.registry import load
from ray_l4.tasks.rows import Split

Write = Callable[..., Path]
TASK = TaskConfig(name="cnn_dailymail", train="all", test="all")
STORY = "By\n\nA Reporter \n\n(CNN) -- It ﬁnally\u00a0rained!\n\n@highlight\n\nRain fell\n\n@highlight\n\nIt's over”\n"


def test_a_story_becomes_an_article_and_its_highlights() -> None:
    lines = ["By", "he said 'yes'", "really?", "end.", "@highlight", "one", "see @highlight here", "@highlight", "two)"]
    assert split_story(lines) == ("By. he said 'yes' really? end.", "one. see @highlight here two)")


def story_files(write: Write, *, split: str, urls: dict[str, list[str]], stories: dict[str, str]) -> None:
    """Write the lists of addresses, by publisher, and the stories of some of them."""
    for publisher in ("cnn", "dailymail"):
        lines = "".join(f"{url}\n" for url in urls.get(publisher, ["http://absent"]))
        write(f"cnndm/url_lists/{publisher}_wayback_{split}_urls.txt", lines)
        for url in urls.get(publisher, []):
            if url in stories:
                write(f"cnndm/{publisher}/stories/{name_of(url)}.story", stories[url])


def name_of(url: str) -> str:
    return hashlib.sha1(url.encode()).hexdigest()


def test_originals_are_read_by_the_lists_cnn_first(
    write: Write, data: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    urls = {"dailymail": ["http://d/1"], "cnn": ["http://c/2", "http://c/gone", "http://c/1"]}
    stories = {"http://d/1": "Mail\n@highlight\nm", "http://c/1": "One\n@highlight\no", "http://c/2": STORY}
    story_files(write, split="training", urls=urls, stories=stories)
    write("cnndm/train_1.csv", "article,highlights\nsubset,s\n")  # the originals take precedence
    with caplog.at_level(logging.WARNING):
        rows = load(TASK, "train", data).to_pylist()
    assert [row["sample_id"] for row in rows] == [name_of(url) for url in ("http://c/2", "http://c/1", "http://d/1")]
    assert rows[0]["context"] == "by. a reporter. (cnn) -- it finally rained!"
    assert rows[0]["question"] == "what is the summary?"
    assert rows[0]["references"] == ["rain fell. it's over”"]
    assert "1 stories on the lists are not in" in caplog.text


@pytest.mark.parametrize(("split", "name"), [("dev", "validation"), ("test", "test")])
def test_each_split_has_its_lists(split: Split, name: str, write: Write, data: DataConfig) -> None:
    story_files(write, split=name, urls={"cnn": ["http://c"]}, stories={"http://c": STORY})
    assert load(TASK, split, data).num_rows == 1
    with pytest.raises(DataError, match=r"cnn_wayback_training_urls\.txt"):
        load(TASK, "train", data)


def test_a_damaged_story_is_a_bad_record(write: Write, data: DataConfig, lenient: DataConfig) -> None:
    urls = {"cnn": ["http://c/1", "http://c/2"]}
    story_files(write, split="test", urls=urls, stories={"http://c/1": STORY, "http://c/2": ""})
    with pytest.raises(DataError, match=rf"{name_of('http://c/2')}.story: .* is empty"):
        load(TASK, "test", data)
    assert load(TASK, "test", lenient).num_rows == 1


def test_subsets_are_joined_without_duplicates(write: Write, data: DataConfig) -> None:
    write(
        "cnndm/train_first500.csv.gz", 'article,reference_summary\n"One , by . X","a .\nb ."\nTWO,t .\nOne by X,again\n'
    )
    write("cnndm/train_100.csv", ",id,article,highlights\n0,abc,Three,c\n1,def,Tested already,d\n")
    write("cnndm/lfpt5_0_42.train.txt", "two\tagain .\nfour words here\tIt is four .\n")
    test = {"cnndm": [{"src": "( CNN ) tested already", "original_summary": "So.. it is.", "gpt3_summary": "no"}]}
    write("cnndm/test_sumcot200.json", json.dumps(test))
    rows = load(TASK, "train", data).to_pylist()
    assert [(row["context"], row["answer"], row["sample_id"]) for row in rows] == [
        ("three", "c", "abc"),
        ("one , by. x", "a. b.", "train_first500-0"),
        ("two", "t.", "train_first500-1"),
        ("four words here", "it is four.", "lfpt5_0_42.train-1"),
    ]
    assert load(TASK, "test", data).column("answer").to_pylist() == ["so. it is."]


def test_missing_files_are_named(write: Write, data: DataConfig) -> None:
    write("cnndm/train_100.csv", "article,highlights\na,b\n")
    with pytest.raises(
        DataError, match=r"found neither the originals .* nor any of validation_\*.csv, lfpt5_\*.valid.txt"
    ):
        load(TASK, "dev", data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_1.csv", "article,highlights\na,b\nc,\n", r"test_1.csv, line 3: article or highlights is empty"),
        ("test_1.csv", "text,highlights\na,b\n", r"no column 'article'"),
        ("test_sumcot200.json", '{"cnndm": [{"src": 1}]}', r"record 0: expected an object with src"),
        ("test_sumcot200.json", "[1]", r"expected a JSON object with a list under 'cnndm'"),
    ],
)
def test_bad_subset_records_are_located(name: str, content: str, message: str, write: Write, data: DataConfig) -> None:
    write(f"cnndm/{name}", content)
    with pytest.raises(DataError, match=message):
        load(TASK, "test", data)


def test_a_line_without_a_tab_is_located(write: Write, data: DataConfig) -> None:
    write("cnndm/lfpt5_0_42.valid.txt", "article\tsummary\nno tab\n")
    write("cnndm/test_1.csv", "article,highlights\na,b\n")
    with pytest.raises(DataError, match=r"valid.txt, line 2: expected an article, a tab"):
        load(TASK, "dev", data)


@given(st.lists(st.text("ab .!?'\")", min_size=1).map(lambda line: " ".join(line.split())).filter(bool), min_size=1))
def test_subsets_and_stories_have_the_same_form(lines: list[str]) -> None:
    """Text of version 3.0.0 is converted back to the form of the reference implementations."""
    lines = [line for line in lines if " ." not in line and line != "."]  # a spaced dot in the story itself
    released = " ".join(line if line.endswith(END_OF_SENTENCE) else f"{line} ." for line in lines)
    assert with_close_dots(released) == split_story(lines)[0]


def test_the_agencys_mark_does_not_distinguish_articles() -> None:
    assert article_key("(CNN)It rained.") == article_key("it rained") == article_key("( cnn ) It rained")
    assert article_key("cnn it rained") != article_key("it rained")


@pytest.mark.shared_data
def test_the_real_subsets(real: DataConfig) -> None:
    tables = {split: load(TASK, split, real) for split in ("train", "dev", "test")}
    assert {split: table.num_rows for split, table in tables.items()} == {"train": 774, "dev": 1176, "test": 681}
    keys = {
        split: {article_key(text) for text in table.column("context").to_pylist()} for split, table in tables.items()
    }
    assert not keys["train"] & keys["test"]
    assert not keys["dev"] & keys["test"]
    for table in tables.values():
        texts = table.column("context").to_pylist() + table.column("answer").to_pylist()
        assert all(text == text.lower() and "\n" not in text for text in texts)
        assert set(table.column("question").to_pylist()) == {"what is the summary?"}
    answers = tables["dev"].column("answer").to_pylist()
    assert answers[0] == (
        "zully broussard decided to give a kidney to a stranger. "
        "a new computer program helped her donation spur transplants for six kidney patients."
    )

"""Text classification: the three formats, hand-made and real."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import DataError
from ray_l4.tasks.distinct import distinct, key_of
from ray_l4.tasks.files import MissingFileError, find_all
from ray_l4.tasks.registry import load
from ray_l4.tasks.rows import BadRecords, Row
from ray_l4.tasks.textclass import HELD_OUT, held_out
from ray_l4.tasks.textclass.corpora import CORPORA
from ray_l4.tasks.textclass.formats import read_tabbed, read_titled

Write = Callable[..., Path]
AG = TaskConfig(name="ag", train="all", test="all")
YELP = TaskConfig(name="yelp", train="all", test="all")


def titled(*records: tuple[str, str, str]) -> list[dict[str, str]]:
    return [{"label": label, "sentence": f"Title: {title}\nText: {text}\n"} for label, title, text in records]


def pairs(task: TaskConfig, split: str, data: DataConfig) -> list[tuple[str, str]]:
    rows = load(task, split, data).to_pylist()
    return [(row["context"], row["answer"]) for row in rows]


def test_the_questions() -> None:
    assert CORPORA["ag"].question == "Is this sentence World, Sports, Business, or Sci/Tech?"
    assert CORPORA["dbpedia"].question == (
        "Is this sentence Company, EducationalInstitution, Artist, Athlete, OfficeHolder, MeanOfTransportation, "
        "Building, NaturalPlace, Village, Animal, Plant, Album, Film, or WrittenWork?"
    )
    stars = "Is this sentence very negative, negative, neutral, positive, or very positive?"
    assert CORPORA["yelp"].question == CORPORA["amazon"].question == stars
    assert CORPORA["yahoo"].question == (
        "Is this sentence Society & Culture, Science & Mathematics, Health, Education & Reference, "
        "Computers & Internet, Sports, Business & Finance, Entertainment & Music, Family & Relationships, or "
        "Politics & Government?"
    )


def test_a_class_is_known_in_any_spelling() -> None:
    ask = CORPORA["dbpedia"].class_of
    spellings = ("thlete", "athlete", "Educational Institution", "educationalinstitution", "Mean of Transportation")
    expected = ["Athlete", "Athlete", "EducationalInstitution", "EducationalInstitution", "MeanOfTransportation"]
    assert [ask(name) for name in spellings] == expected
    assert CORPORA["yahoo"].class_of("entertainment and Music") == "Entertainment & Music"
    assert CORPORA["ag"].class_of("Science or Technology") == "Sci/Tech"
    assert [CORPORA["amazon"].class_of(word) for word in ("terrible", "middle", "wonderful")] == [
        "very negative",
        "neutral",
        "very positive",
    ]
    assert CORPORA["ag"].class_of("Company") is None


def test_the_three_formats_give_one_context(write: Write, data: DataConfig) -> None:
    title, text = "Up #39;n  away\\no", 'The "comet"  is on'
    context = f"{title} {text}"
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL).writerow(["4", title, text])
    write("textclass/agnews/test.csv", line.getvalue())
    write("textclass/agnews/train.csv", '"1","a","b"\n')
    assert pairs(AG, "test", data) == [(context, "Sci/Tech")]
    corpus, bad = CORPORA["ag"], BadRecords("x", 0.0)
    records = read_titled(write("olora.json", titled(("Science or Technology", title, text))), corpus, bad)
    assert [row["context"] for row in records] == [context]
    assert [row["context"] for row in read_tabbed(write("l.txt", f"{context}\tscience\n"), corpus, bad)] == [context]
    assert bad.count == 0


def test_originals_stay_as_published(write: Write, data: DataConfig) -> None:
    write("textclass/ag_news_csv/train.csv", '"3","A ""b""","c"\n"3","Same","text"\n"3","Same","text"\n')
    write("textclass/ag_news_csv/test.csv.gz", '"1","Same","text"\n')
    write("textclass/ag_news_csv/classes.txt", "World\nSports\nBusiness\nSci/Tech\n")
    write("textclass/agnews/olora.train.json", titled(("World", "subset", "of it")))
    assert pairs(AG, "train", data) == [('A "b" c', "Business"), ("Same text", "Business"), ("Same text", "Business")]
    assert load(AG, "train", data).column("sample_id").to_pylist() == ["0", "1", "2"]
    with pytest.raises(MissingFileError, match="ag: the text-classification sets have no dev split"):
        load(AG, "dev", data)


def test_yahoo_has_three_texts_and_yelp_one(write: Write, data: DataConfig) -> None:
    for split in ("train", "test"):
        write(f"textclass/yahoo_answers_csv/{split}.csv", '"5","why?","","because\\nof \\""it\\"""\n')
        write(f"textclass/yelp/{split}.csv", '"1","Bad.\\n\\nReally"\n')
    yahoo = TaskConfig(name="yahoo", train="all", test="all")
    assert pairs(yahoo, "test", data) == [('why?  because of "it"', "Computers & Internet")]
    assert pairs(YELP, "train", data) == [("Bad.  Really", "very negative")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('"5","a","b"', r"class '5', expected a number from 1 to 4"),
        ('"x","a","b"', r"class 'x', expected a number"),
        ('"1","a"', r"2 columns, expected 3"),
    ],
)
def test_bad_rows_are_located(line: str, why: str, write: Write, data: DataConfig, lenient: DataConfig) -> None:
    write("textclass/agnews/test.csv", f'"1","a","b"\n{line}\n')
    write("textclass/agnews/train.csv", '"1","a","b"\n')
    with pytest.raises(DataError, match=rf"test.csv, line 2: {why}"):
        load(AG, "test", data)
    assert load(AG, "test", lenient).num_rows == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'"1","a","b"\n"2","never closed\n', r"test.csv: not CSV after line 1"),
        (b'"1","a","b"\n"2","caf\xe9","x"\n', r"test.csv: not UTF-8 after line"),
    ],
)
def test_damaged_csv_is_located(content: bytes, message: str, write: Write, data: DataConfig) -> None:
    write("textclass/agnews/test.csv", content)
    with pytest.raises(DataError, match=message):
        load(AG, "test", data)


def test_other_classes_are_refused(write: Write, data: DataConfig) -> None:
    write("textclass/agnews/test.csv", '"1","a","b"\n')
    write("textclass/agnews/classes.txt", "Sports\nWorld\nBusiness\nSci/Tech\n")
    with pytest.raises(DataError, match=r"classes.txt: expected the classes World, Sports, Business, Sci/Tech"):
        load(AG, "test", data)


def test_subsets_are_joined_and_no_test_text_is_trained_on(write: Write, data: DataConfig) -> None:
    write("textclass/agnews/olora.train.json.gz", titled(("World", "One", "text"), ("Sports", "Two", "text")))
    write("textclass/agnews/lfpt5_0_42.train.txt", "two  TEXT\tsports\nthree text\tbusiness\n")
    write("textclass/agnews/lfpt5_0_42.valid.txt", "tested, text\tworld\nfour text\tscience\n")
    write("textclass/agnews/lfpt5_0_42.test.txt", "tested text\tworld\n")
    write("textclass/agnews/lfpt5_1_142.test.txt", "Tested text\tworld\nother\tworld\n")
    expected = [("One text", "World"), ("Two text", "Sports"), ("three text", "Business"), ("four text", "Sci/Tech")]
    assert pairs(AG, "train", data) == expected
    assert load(AG, "train", data).column("sample_id").to_pylist() == [
        "olora.train-0",
        "olora.train-1",
        "lfpt5_0_42.train-1",
        "lfpt5_0_42.valid-1",
    ]
    assert pairs(AG, "test", data) == [("tested text", "World"), ("other", "World")]
    write("textclass/agnews/olora.test.json", titled(("World", "three", "text")))  # more complete than the subsets
    assert pairs(AG, "test", data) == [("three text", "World")]
    assert ("three text", "Business") not in pairs(AG, "train", data)


def test_subset_records_that_cannot_be_used_are_located(write: Write, data: DataConfig) -> None:
    write("textclass/agnews/olora.test.json", [*titled(("World", "a", "b")), {"label": "World"}])
    with pytest.raises(DataError, match=r"olora.test.json, record 1: expected a label, and a sentence of the form"):
        load(AG, "test", data)
    write("textclass/agnews/olora.test.json", titled(("Weather", "a", "b")))
    with pytest.raises(DataError, match=r"record 0: unknown class 'Weather', expected one of World, Sports"):
        load(AG, "test", data)
    write("textclass/agnews/lfpt5_0_42.train.txt", "no tab\n")
    with pytest.raises(DataError, match=r"train.txt, line 1: expected a text, a tab and a class"):
        load(AG, "train", data)


def test_nothing_to_train_on_names_what_is_there(write: Write, data: DataConfig) -> None:
    with pytest.raises(MissingFileError, match=r"agnews: no such folder; expected it to contain train.csv or olora"):
        load(AG, "test", data)
    write("textclass/agnews/trains.csv", "x")
    with pytest.raises(MissingFileError, match=r"no file train.csv or olora.train.json .*Did you mean 'trains.csv'"):
        load(AG, "train", data)


def yelp_rows(texts: list[str]) -> list[Row]:
    return [Row(context=text, question="", references=[f"class {len(text) % 3}"], sample_id=text) for text in texts]


@given(st.lists(st.text("abc", min_size=1), unique=True, max_size=60), st.randoms())
def test_held_out_texts_are_balanced_and_depend_on_the_texts_alone(texts: list[str], random: object) -> None:
    rows = yelp_rows(texts)
    out = [row["context"] for row in held_out(rows)]
    assert out == [text for text in texts if text in set(out)]  # in file order, without duplicates
    sizes = Counter(row["references"][0] for row in rows)
    taken = Counter(row["references"][0] for row in rows if row["context"] in set(out))
    assert all(taken[name] == min(HELD_OUT, size // 4) for name, size in sizes.items())
    random.shuffle(rows)  # type: ignore[attr-defined]
    assert {row["context"] for row in held_out(rows)} == set(out)


@given(st.lists(st.text("aA b.", max_size=4)), st.sets(st.text("ab", max_size=3)))
def test_distinct_keeps_the_first_of_each_kind(texts: list[str], taken: set[str]) -> None:
    keys = {key_of(text) for text in taken}
    kept = [row["context"] for row in distinct(yelp_rows(texts), keys)]
    assert len({key_of(text) for text in kept}) == len(kept)
    assert {key_of(text) for text in kept} == {key_of(text) for text in texts} - keys
    for text in kept:
        assert text == next(other for other in texts if key_of(other) == key_of(text))


def test_plain_files_win_over_packed_ones(write: Write, tmp_path: Path) -> None:
    for name in ("b.txt.gz", "a.txt.gz", "b.txt", "c.csv"):
        write(name, "x")
    assert [path.name for path in find_all(tmp_path, "*.txt")] == ["a.txt.gz", "b.txt"]
    assert find_all(tmp_path / "none", "*") == []


REAL = {"ag": (4377, 7600), "dbpedia": (1344, 7600), "yelp": (4000, 1000), "amazon": (5480, 7600), "yahoo": (960, 2958)}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", REAL)
def test_the_real_files(name: str, real: DataConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train, test = (load(TaskConfig(name=name), split, real) for split in ("train", "test"))
    assert (train.num_rows, test.num_rows) == REAL[name]
    assert (
        f"{name} (train): the papers use 115000 examples, the data has {REAL[name][0]}; using all of them"
        in caplog.text
    )
    keys = [{key_of(text) for text in table.column("context").to_pylist()} for table in (train, test)]
    assert not keys[0] & keys[1]
    assert len(keys[0]) == train.num_rows
    for table in (train, test):
        assert set(table.column("answer").to_pylist()) == set(CORPORA[name].classes)
        assert set(table.column("question").to_pylist()) == {CORPORA[name].question}
        assert not any(text.startswith(("Title:", "Text:")) for text in table.column("context").to_pylist())
    if name == "yelp":
        assert set(Counter(test.column("answer").to_pylist()).values()) == {HELD_OUT}


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "folder", "texts"), [("ag", "agnews", 1132), ("dbpedia", "dbpedia", 440), ("amazon", "amazon", 10)]
)
def test_two_publications_agree_on_text_and_class(name: str, folder: str, texts: int, shared_data: Path) -> None:
    """Texts of the subsets that are also in the other test file have the same context and class there."""
    corpus, bad, place = CORPORA[name], BadRecords(name, 0.0), shared_data / "raw" / "textclass" / folder
    [other] = find_all(place, "olora.test.json")
    known = {row["context"]: row["references"] for row in read_titled(other, corpus, bad)}
    drawn = [row for path in find_all(place, "lfpt5_*.test.txt") for row in read_tabbed(path, corpus, bad)]
    both = {row["context"]: row["references"] for row in drawn if row["context"] in known}
    assert len(both) == texts
    assert both == {context: known[context] for context in both}
    assert bad.count == 0

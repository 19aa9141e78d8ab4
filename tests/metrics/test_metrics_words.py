"""Words of text in any script: what counts as one, case, canonical equivalence, and ASCII text left as it was."""

from __future__ import annotations

import re
import string
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from ray_l4.metrics.registry import Item, score
from ray_l4.metrics.rouge import WordTokenizer, f_measures, sentences
from ray_l4.metrics.text import f1, normalise
from ray_l4.metrics.words import folded, words

TEXTS = {
    "Chinese": "我想订一张去北京的票。",
    "Japanese": "スーパーで牛乳を買った。",
    "Korean": "저는 서울에 살아요.",
    "Russian": "Привет, как дела?",
    "Greek": "Ὁ Ὀδυσσεύς",
    "German": "Möller grüßt die Straße",
    "Turkish": "İstanbul'da güzel bir gün",
    "Vietnamese": "Tôi đang học tiếng Việt",
    "Hindi": "मैं हिन्दी पढ़ता हूँ।",
    "Tamil": "நான் தமிழ் படிக்கிறேன்",
    "Arabic": "كَتَبَ الطالبُ الدرسَ، ثم ذهب؟",
    "Persian": "می\u200cخواهم کتاب بخوانم",
    "Hebrew": "שָׁלוֹם עולם",
    "Thai": "ฉันชอบกินข้าวผัด",
    "Lao": "ຂ້ອຍມັກກິນເຂົ້າ",
    "Khmer": "ខ្ញុំ\u200bចូលចិត្ត\u200bបាយ",
    "Burmese": "ကျွန်တော် ထမင်းစားတယ်",
    "Tibetan": "བོད་སྐད་ཡག་པོ།",
    "Amharic": "ሰላም፡ለዓለም።",
    "Georgian": "გამარჯობა მსოფლიო",
}


def one(metric: str, prediction: str, reference: str) -> dict[str, float]:
    return score(metric, [Item(prediction, (reference,), "0")])


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_perfect_answer_scores_100_in_every_language_and_form(language: str, form: str) -> None:
    text = TEXTS[language]
    answer = normalize(form, text.upper())  # type: ignore[arg-type]
    assert all(value == pytest.approx(100) for value in one("avg_rouge", answer, text).values())
    found = one("nem", answer, text)
    assert (found["nem"], found["nf1"]) == (100.0, 100.0)


@pytest.mark.parametrize("language", TEXTS)
def test_the_answer_of_another_language_scores_0(language: str) -> None:
    here = set(words(TEXTS[language]))
    others = [text for text in TEXTS.values() if not here & set(words(text))]
    assert len(others) > 15
    for other in others:
        assert one("avg_rouge", other, TEXTS[language])["avg_rouge"] == one("nf1", other, TEXTS[language])["nf1"] == 0.0


@pytest.mark.parametrize("text", ["👍", "👍🏽 ❤️", "★★★☆☆", "♥"])
def test_a_perfect_answer_of_symbols_scores_100(text: str) -> None:
    found = one("avg_rouge", text, text)
    assert found["rouge1"] == found["rougeL"] == pytest.approx(100)
    assert one("avg_rouge", "🙁", text)["avg_rouge"] == 0.0


def test_other_letters_are_other_words() -> None:
    assert one("avg_rouge", "Möller grüßer", "Müller größer")["avg_rouge"] == 0.0
    assert one("nf1", "Möller grüßer", "Müller größer")["nf1"] == 0.0
    assert one("avg_rouge", "Möller geht", "Möller kommt")["rouge1"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Möller's straße", ["möller", "s", "strasse"]),
        ("ΟΔΟΣ οδός", ["οδοσ", "οδόσ"]),
        ("用Python写2024年", ["用", "python", "写", "2024", "年"]),
        ("スーパー", ["ス", "ー", "パ", "ー"]),
        ("人々", ["人", "々"]),
        ("저는 서울에", ["저는", "서울에"]),
        ("กินข้าว", ["กิ", "น", "ข้", "า", "ว"]),  # a combining mark belongs to its letter
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("كَتَبَ الدرسَ،", ["كَتَبَ", "الدرسَ"]),
        ("می\u200cخواهم", ["میخواهم"]),  # a joiner ends no word
        ("co\u00adoperate", ["cooperate"]),
        ("М\u02bcята", ["м", "ята"]),  # as with the apostrophe ' or ’
        ("O\u02bbzbek", ["o", "zbek"]),
        ("བོད་སྐད།", ["བོད", "སྐད"]),
        ("ሰላም፡ለዓለም", ["ሰላም", "ለዓለም"]),
        ("«так» — да…", ["так", "да"]),
        ("❤️ 👍🏽 ¡olé! x_y", ["❤", "👍🏽", "olé", "x", "y"]),
        ("20°C ©", ["20", "°", "c", "©"]),
        ("🇩🇪 👩\u200d🚀", ["🇩", "🇪", "👩", "🚀"]),
        ("١٢٣ ५", ["١٢٣", "५"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_only_ascii_words_are_stemmed() -> None:
    tokenize = WordTokenizer().tokenize
    assert tokenize("Stopping Möllers naïvely stopped") == ["stop", "möllers", "naïvely", "stop"]
    assert one("avg_rouge", "Möller stopped", "Möller stops")["avg_rouge"] == pytest.approx(100)


@pytest.mark.parametrize("stop", ["。", "।", "۔", "።", "．"])
def test_full_stops_of_other_scripts_end_sentences(stop: str) -> None:
    assert sentences(f"红车{stop} 蓝车{stop}") == "红车\n蓝车"
    assert one("avg_rouge", f"红车{stop}蓝马{stop}", f"蓝马{stop}红车{stop}")["rougeL"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("我喜欢猫", "我喜欢狗", 3 / 4),
        ("我 喜欢 猫", "我喜欢猫。", 1.0),
        ("ฉันชอบแมว", "ฉันชอบหมา", None),
        ("je t’aime", "je t'aime", 1.0),
        ("«да», конечно!", "да конечно", 1.0),
        ("¿qué?", "qué", 1.0),
        ("м\u02bcята", "м'ята", 1.0),
        ("好的～", "好的", 1.0),
        ("a\u0331 b", "a\u0332 b", 0.5),  # no article: the mark makes it another letter
    ],
)
def test_normalised_f1_outside_ascii(prediction: str, reference: str, expected: float | None) -> None:
    found = one("nf1", prediction, reference)
    if expected is None:
        assert 0 < found["nf1"] < 100
    else:
        assert found["nf1"] == pytest.approx(100 * expected)
    assert found["nem"] == (100.0 if found["nf1"] == 100.0 else 0.0)


# --- ASCII text: as before, to the last digit


def normalise_ascii(text: str) -> str:
    """The normalisation of the references' code."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


ASCII = st.text(st.characters(max_codepoint=127), max_size=40) | st.lists(
    st.sampled_from(["the", "A", "running", "cars.", "an", "3.5", "don't", "x_y", "\n", "Stopped", "$5", "child-like"]),
    max_size=12,
).map(" ".join)


@given(ASCII)
def test_tokens_of_ascii_text_are_those_of_rouge_score(text: str) -> None:
    assert WordTokenizer().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)
    assert words(text) == DefaultTokenizer().tokenize(text)


@given(ASCII, ASCII)
def test_scores_of_ascii_text_with_one_reference_are_those_of_rouge_score(prediction: str, reference: str) -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeLsum"], use_stemmer=True)
    found = scorer.score(sentences(reference), sentences(prediction))
    assert list(f_measures(prediction, [reference]).values()) == [found[key].fmeasure for key in found]


@given(ASCII)
def test_normalised_ascii_text_is_that_of_the_references(text: str) -> None:
    assert normalise(text) == normalise_ascii(text)
    assert folded(text) == text.lower()


# --- any text


ANY = st.text(max_size=20) | st.lists(st.sampled_from(list(TEXTS.values())), max_size=3).map(" ".join)


@given(ANY)
def test_canonically_equivalent_texts_and_texts_in_capitals_are_equal(text: str) -> None:
    forms = [normalize(form, text) for form in ("NFC", "NFD")]  # type: ignore[arg-type]
    assert words(forms[0]) == words(forms[1]) == words(text)
    assert normalise(forms[0]) == normalise(forms[1]) == normalise(text)
    assert words(text.casefold()) == words(text)


@given(ANY)
def test_a_text_with_two_words_or_more_is_its_own_perfect_answer(text: str) -> None:
    assert f1(normalise(text), normalise(text)) == 1.0
    values = f_measures(text, [text])
    count = len(words(text))
    assert values["rouge1"] == (1.0 if count else 0.0)
    if "." not in text and count:
        assert values["rougeL"] == pytest.approx(1.0)
    assert values["rouge2"] == (1.0 if count > 1 else 0.0)

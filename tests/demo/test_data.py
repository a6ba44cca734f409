"""The demo's own data: reproducible, gradeable, and with nothing of the held-out cases in the training examples."""

import json
import re

import pypdf
import pytest

from ryorin.prompt import Prompt, PromptPassage, render
from ryorin.prompt_file import read_prompt_file
from ryorin_demo import data, grade, story

ROOT = data.DATASETS.parent
KINDS = {"plain", "boundary", "choice", "refuse", "outside"}


def rows_of(desk):
    """Every example that a desk's adapter has seen of its own desk: its file's, and those among the common ones."""
    own = data.read_jsonl(data.training_file(desk))
    return own + data.examples(desk, data.SEED, data.COMMON)


def normal(text: str) -> str:
    """Text reduced to its words, every number and amount alike."""
    return " ".join(re.sub(r"\d[\d,]*", "0", text.lower()).translate(str.maketrans("", "", "?.,'")).split())


def text_of(path):
    if path.suffix == ".pdf":
        raw = "\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages)
    else:
        raw = path.read_text(encoding="utf-8")
    return " ".join(re.sub(r"<[^>]+>", " ", raw).split())


@pytest.mark.parametrize("desk", data.DESKS)
def test_the_committed_examples_are_what_the_generator_makes(desk):
    made = data.examples(desk, data.SEED + 1, data.EXAMPLES[desk])
    assert data.training_file(desk).read_text(encoding="utf-8") == data.to_jsonl(made)
    assert data.examples(desk, data.SEED, data.EXAMPLES[desk]) != made


def test_the_committed_common_examples_are_what_the_generator_makes():
    made = data.common_examples(data.SEED, data.COMMON)
    assert data.common_file().read_text(encoding="utf-8") == data.to_jsonl(made)
    assert len(made) == 2 * data.COMMON


@pytest.mark.parametrize("desk", data.DESKS)
def test_a_common_example_reads_as_the_desk_is_served(desk):
    """With the company's prompt, and with the desk's: the same messages."""
    company = read_prompt_file(data.PROMPTS / "company.json")
    prompt = read_prompt_file(data.PROMPTS / f"{desk}.json")
    served = []
    for row in data.examples(desk, data.SEED, 40):
        passages = [PromptPassage(**passage) for passage in row["passages"]] if "passages" in row else None
        served.append(render(prompt, row["messages"], passages))
    common = [row["messages"] for row in data.common_examples(data.SEED, 40)]
    assert all(messages in common for messages in served)
    rendered = [[each for each in render(company, messages, None) if each["content"]] for messages in common]
    assert rendered == common


@pytest.mark.parametrize("desk", data.DESKS)
def test_every_training_answer_is_right_by_the_grader(desk):
    asked = refused = 0
    for row in rows_of(desk):
        if "passages" not in row:
            continue
        for message in row["messages"][1::2]:
            asked += 1
            reading = grade.READERS[desk](message["content"])
            assert reading is not None, row
            if reading.citation is None:
                assert reading.decision == "NO"
                refused += 1
                continue
            passage = " ".join(row["passages"][reading.citation - 1]["text"].split()).lower()
            fact = reading.fact if desk == "support" else re.search(r'"(.+)"', reading.fact).group(1)
            assert fact.lower() in passage, row
    assert 0.1 < refused / asked < 0.4


@pytest.mark.parametrize("desk", data.DESKS)
def test_drills_compare_rightly(desk):
    words = {True: "YES", False: "NO"}
    drills = [row for row in rows_of(desk) if "passages" not in row]
    assert drills
    for row in drills:
        question, answer = (message["content"].splitlines() for message in row["messages"])
        for asked, answered in zip(question[1:], answer, strict=True):
            value, limit = (int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d|\d", asked))
            least = re.search("at least|minimum|no less|or more", asked)
            assert answered.endswith(words[value >= limit if least else value <= limit]), (asked, answered)


@pytest.mark.parametrize(
    ("value", "limit", "steps"),
    [
        (31, 30, "digits 2-2 same, 3-3 same, 1-0 more"),
        (30, 30, "digits 2-2 same, 3-3 same, 0-0 same"),
        (29, 30, "digits 2-2 same, 2-3 less"),
        (8, 12, "digits 1-2 less"),
        (12_000, 8_000, "digits 5-4 more"),
    ],
)
def test_comparing_digit_by_digit(value, limit, steps):
    assert data.compared(value, limit) == steps


@pytest.mark.parametrize("desk", data.DESKS)
def test_no_held_out_question_is_trained_on(desk):
    cases = [case["question"] for case in data.read_jsonl(data.held_out_file(desk))]
    cases += [story.SAME_QUESTION, story.EDIT.question]
    rows = rows_of(desk)
    trained = {normal(message["content"]) for row in rows for message in row["messages"][::2]}
    assert not trained & {normal(question) for question in cases}
    assert len(set(cases[:-2])) == len(cases[:-2])


@pytest.mark.parametrize("desk", data.DESKS)
def test_no_section_of_the_corpus_is_trained_on(desk):
    """No training passage shares half of its content words with a section of the documents that are asked about."""
    sections = [words_of(section) for path in (ROOT / "corpus" / desk).iterdir() for section in sections_of(path)]
    rows = rows_of(desk)
    passages = {passage["text"] for row in rows for passage in row.get("passages", [])}
    for passage in passages:
        words = words_of(passage)
        for section in sections:
            assert len(words & section) <= max(2, len(words | section) / 2), (passage, section)


def sections_of(path):
    if path.suffix == ".pdf":
        return [page.extract_text() for page in pypdf.PdfReader(path).pages]
    raw = re.sub(r"(?s).*<main>|</main>.*", "", path.read_text(encoding="utf-8"))
    return [re.sub(r"<[^>]+>", " ", section) for section in re.split(r"^#+ .*$|<h\d>.*?</h\d>", raw, flags=re.M)]


def words_of(text):
    """The words that carry the topic: four letters or more."""
    common = {"with", "that", "from", "least", "most", "more", "than", "after"}
    return set(re.findall(r"[a-z]{4,}", text.lower())) - common


@pytest.mark.parametrize("desk", data.DESKS)
def test_held_out_facts_stand_in_exactly_one_document(desk):
    texts = {path.name: text_of(path) for path in sorted((ROOT / "corpus" / desk).iterdir())}
    cases = data.read_jsonl(data.held_out_file(desk))
    assert len(cases) >= {"support": 50, "people": 30}[desk]
    assert {case["kind"] for case in cases} == KINDS
    for case in cases:
        if case["document"] is None:
            assert (case["decision"], case["fact"]) == ("NO", None)
        else:
            assert grade.states(texts[case["document"]], case["fact"]), case
    for probe in data.read_jsonl(data.DATASETS / f"{desk}.japanese.jsonl"):
        assert re.search("[ぁ-んァ-ン一-龥]", texts[probe["document"]]), probe


def test_the_story_fits_the_corpus():
    edit = story.EDIT
    text = (ROOT / "corpus" / edit.desk / edit.file).read_text(encoding="utf-8")
    assert text.count(edit.old) == 1
    assert grade.states(text, edit.before["fact"]) and not grade.states(text, edit.after["fact"])
    assert grade.states(text.replace(edit.old, edit.new), edit.after["fact"])
    for desk, expected in story.SAME_QUESTION_EXPECTED.items():
        assert grade.states(text_of(ROOT / "corpus" / desk / expected["document"]), expected["fact"])


def test_japanese_pdfs_give_their_text():
    assert "冷蔵庫、洗濯機を引き取ります" in text_of(ROOT / "corpus" / "support" / "kaden-recycle.pdf")
    assert "11月15日までに提出" in text_of(ROOT / "corpus" / "people" / "nenmatsu-chosei.pdf")


@pytest.mark.parametrize("desk", data.DESKS)
def test_prompts_are_short_and_readable(desk):
    spec = json.loads((ROOT / "prompts" / f"{desk}.json").read_text(encoding="utf-8"))
    assert set(spec) == {"system", "answer_schema"}
    assert len(Prompt.from_spec(spec).system.split()) < 60

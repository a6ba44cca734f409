"""Cutting: sizes in tokens, whole sentences, overlap, exact offsets; windows of texts that are too long."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from word_embedder import WordEmbedder

from ryorin.errors import InvalidInput
from ryorin.models.registry import Embedder
from ryorin_index.chunking import Chunking, chunking_from_json, default_chunking, make_chunking
from ryorin_index.counting import ADDED_TOKENS, E5_LIMIT, EstimatedTokens, TokenCounter, open_counter
from ryorin_index.embed import Vectors
from ryorin_index.packing import CHARACTERS_PER_TOKEN, pack
from ryorin_index.parse import ParsedDocument
from ryorin_index.passages import split_document
from ryorin_index.sentences import find_cuts
from ryorin_index.windows import Windowed

WORDS = "the shop opens at nine o'clock goods go back within 30 days of purchase お米 返品 定期便 です"


@pytest.fixture(scope="session")
def word_pieces(tmp_path_factory: pytest.TempPathFactory) -> TokenCounter:
    """A real tokenizer (WordPiece, as MiniLM's) trained on a few words, in a folder of an embedder."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator([WORDS] * 3, vocab_size=120, min_frequency=1, show_progress=False)
    folder = tmp_path_factory.mktemp("embedder")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    return open_counter(Embedder("own", "sentence-transformers", "1" * 64, 64, path=folder))


def sentences(text: str) -> list[str]:
    places = [at for at, _ in find_cuts(text, 0, len(text))] + [len(text)]
    return [text[start:end].strip() for start, end in pairwise(places)]


@pytest.mark.parametrize(
    "expected",
    [
        ["Dr. Smith paid 3.5 yen.", "He left at 9 a.m. and came back.", "Wow!", "Really?", "Yes…", "It ended."],
        ["See Fig. 3 and no. 5, e.g. on p. 7.", "J. Smith of Smith Inc. said so.", "The U.S. law holds."],
        ["It works (see below. Then stop) now.", '"Is it so?"', "He said no.", "It is."],
        ["未開封の商品は返品できます。", "開封後はできません！", "本当ですか？", "はい。"],
        ["「はい。そうです。」と彼は言った。", "「行きます。」", "次の文です（注。意味）。", "値段は3.5円です。"],
        ["1. First step.", "2. Second step.", "Done."],
        ["- one", "- two", "- three"],
        ["| size | yen |", "| S | 500 |", "| M | 700 |"],
        ["```", "x = 1. Y", "# no heading", "```"],
    ],
)
def test_sentences_are_told(expected: list[str]) -> None:
    joint = "\n" if expected[0][:2] in ("- ", "| ", "``", "1.") else ("" if "。" in "".join(expected) else " ")
    assert sentences(joint.join(expected)) == expected


def test_a_bracket_that_is_never_closed_does_not_join_a_text() -> None:
    assert sentences("「閉じない。次の文。\n\n終わり。") == ["「閉じない。", "次の文。", "終わり。"]


def test_wrapped_lines_are_read_across_their_ends() -> None:
    assert sentences("The goods go\nback. Now.\n\nNew\nparagraph.") == [
        "The goods go\nback.",
        "Now.",
        "New\nparagraph.",
    ]


TEXTS = st.lists(
    st.one_of(
        st.text(alphabet="ab É.,!?\n\t#-`|()「」\u0301", max_size=200),
        st.text(alphabet="お米の定期便、。「」\n ", max_size=200),
        st.sampled_from(
            [
                *(
                    "word " * 300,
                    "It is so. " * 60,
                    "長い文章です。" * 90,
                    "x" * 3000,
                    "- item\n" * 80,
                    " " * 5000,
                    "\n\n",
                ),
                *("| a | b |\n" * 90, "```\nx = 1.\n", "「長い。" * 80 + "」", "定" * 900, "(Yes. No) " * 90),
            ]
        ),
    ),
    max_size=6,
).map("".join)


@given(text=TEXTS, overlap=st.sampled_from([0, 40, 50]), real=st.booleans())
def test_pieces_are_exact_small_enough_in_order_and_complete(
    word_pieces: TokenCounter, text: str, overlap: int, real: bool
) -> None:
    counter = word_pieces if real else EstimatedTokens(E5_LIMIT)
    pieces = pack(text, 0, len(text), Chunking(100, overlap), counter)
    covered = bytearray(len(text))
    counts = counter.counts([text[piece.start : piece.end] for piece in pieces])
    for piece, tokens in zip(pieces, counts, strict=True):
        part = text[piece.start : piece.end]
        assert part and part == part.strip()
        assert piece.tokens == tokens <= 100
        assert len(part) <= 100 * CHARACTERS_PER_TOKEN
        covered[piece.start : piece.end] = b"\1" * len(part)
    assert "".join(letter for letter, seen in zip(text, covered, strict=True) if not seen).strip() == ""
    starts = counter.starts(text).tolist()
    for before, after in pairwise(pieces):
        assert before.start < after.start and before.end < after.end
        assert bisect_left(starts, before.end) - bisect_left(starts, after.start) <= overlap


def test_overlap_is_whole_sentences_within_a_section() -> None:
    line = "Sentence number {} tells what the shop does on that day of the year. "
    text = "# T\n\n## A\n\n" + "".join(line.format(at) for at in range(40)) + "\n\n## B\n\nEnd of it."
    drafts = split_document(ParsedDocument(text, "T", "text/markdown"), Chunking(100, 40))
    first, second = drafts[:2]
    assert second.start < first.end
    assert text[second.start : first.end].startswith("Sentence number") and first.text.endswith("year.")
    assert (drafts[-1].heading, drafts[-1].text) == ("B", "End of it.")
    assert drafts[-2].end < drafts[-1].start
    apart = split_document(ParsedDocument(text, "T", "text/markdown"), Chunking(100, 0))
    assert all(before.end <= after.start for before, after in pairwise(apart))


def test_a_paragraph_is_cut_before_a_sentence() -> None:
    text = "One of the words is here. " * 8 + "\n\n" + "Another part of it begins here. " * 10
    pieces = pack(text, 0, len(text), Chunking(100, 0), EstimatedTokens(E5_LIMIT))
    assert text[pieces[1].start :].startswith("Another part")


def test_what_is_a_section_that_fits_stays_whole() -> None:
    text = "Dr. Smith came. " * 15
    assert [draft.text for draft in split_document(ParsedDocument(text, "T", "text/plain"))] == [text.strip()]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"max_tokens": 99}, "max_tokens"),
        ({"max_tokens": 4097}, "max_tokens"),
        ({"max_tokens": "800"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 200, "overlap_tokens": 101}, "overlap_tokens"),
        ({"overlap_tokens": -1}, "overlap_tokens"),
        ({"size": 4}, "size"),
    ],
)
def test_settings_that_are_wrong_name_their_field(values: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput, match=field) as caught:
        chunking_from_json(values)
    assert caught.value.param == field


def test_the_default_leaves_room_for_the_title() -> None:
    assert default_chunking(256).max_tokens == 192
    assert default_chunking(None) == Chunking() == default_chunking(8192)
    assert make_chunking(None, None) is None
    assert make_chunking(100, None) == Chunking(100, 40)
    assert chunking_from_json(Chunking(4096, 2048).to_json()) == Chunking(4096, 2048)


def test_a_folder_says_what_its_embedder_reads(word_pieces: TokenCounter, tmp_path: Path) -> None:
    assert word_pieces.limit == 256
    text = "goods go back. 返品です。 " * 4000  # longer than a block
    assert len(word_pieces.starts(text)) == word_pieces.counts([text])[0] == 4000 * word_pieces.counts([text[:20]])[0]
    assert open_counter(Embedder("url", "openai", "2" * 64, 64)).limit is None


class Reading(WordEmbedder):
    """Reads no more than its limit, as real embedders do."""

    def __init__(self, counter: TokenCounter) -> None:
        super().__init__()
        self._counter = counter

    def passages(self, texts: Sequence[str]) -> Vectors:
        assert self._counter.limit is not None
        starts = [self._counter.starts(text).tolist() for text in texts]
        room = self._counter.limit - ADDED_TOKENS
        read = [text[: at[room]] if len(at) > room else text for text, at in zip(texts, starts, strict=True)]
        return super().passages(read)


def test_a_long_passage_is_read_to_its_end(word_pieces: TokenCounter) -> None:
    reading = Reading(word_pieces)
    long = "Returns\n" + "the shop opens at nine. " * 200 + "zebra " * 40
    rows = Windowed(reading, word_pieces).passages(["Returns\nshort", long])
    assert rows.shape == (2, 64)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert sum(text.count("zebra") for text in reading.embedded) == 40
    assert all(text.startswith("Returns\n") for text in reading.embedded)
    assert rows[1] @ reading.query("zebra") > 0.02 + reading.passages([long])[0] @ reading.query("zebra")
    np.testing.assert_array_equal(rows[0], reading.passages(["Returns\nshort"])[0])


def test_a_title_longer_than_the_limit_is_read_too(word_pieces: TokenCounter) -> None:
    reading = Reading(word_pieces)
    Windowed(reading, word_pieces).passages(["title " * 400 + "\nend"])
    assert sum(text.count("title") for text in reading.embedded) == 400 and reading.embedded[-1].endswith("end")

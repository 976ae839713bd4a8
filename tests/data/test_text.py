"""Texts as token numbers: words come from the training part alone, and what cannot be read is named."""

from __future__ import annotations

import gzip
from collections import Counter

import pytest
import torch

from secateur.data import ReadConfig, Words, load_data, read_texts, split_words
from secateur.data.words import PAD, SPECIAL, UNKNOWN, known_words, renumbered
from secateur.errors import ConfigError, DataError

TEXTS = [f"{'good' if i % 2 else 'bad'} film number {i}" for i in range(40)]


def write(path, rows, header="text,label"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def reviews(tmp_path):
    return write(tmp_path / "a.csv", [f"{text},{'yes' if i % 2 else 'no'}" for i, text in enumerate(TEXTS)])


def test_numbers_stand_for_the_words_of_the_training_part(reviews):
    splits = load_data(f"text:{reviews}", read=ReadConfig(max_length=6))
    assert splits.classes == ("no", "yes")
    words = splits.words.listed
    seen = set()
    for part in splits.parts().values():
        assert part.x.dtype == torch.int64
        for row, label in zip(part.x, part.y, strict=True):
            text = [words[i] for i in row if i != PAD]
            assert text[:3] == ["good" if label else "bad", "film", "number"]
            seen.add(text[3])
    trained = {words[i] for row in splits.train.x for i in row}
    assert set(words) == {*trained, *SPECIAL}
    assert SPECIAL[UNKNOWN] in seen  # numbers of the other parts that training never saw
    assert not (splits.train.x == UNKNOWN).any()


def test_packed_files_and_named_columns(tmp_path):
    text = "id,kind,review\n" + "\n".join(f"{i},{i % 2},word{i}" for i in range(8)) + "\n"
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    texts, y, classes = read_texts(str(tmp_path / "a.csv.gz"), ReadConfig(text="review", label="kind"))
    assert texts == [f"word{i}" for i in range(8)]
    assert y.tolist() == [0, 1] * 4
    assert classes == ("0", "1")


def test_the_commonest_words_are_known():
    texts = ["b a a", "c c c a", "d"]
    counts = Counter(word for text in texts for word in split_words(text))
    words = Words.of(texts)
    assert [counts[w] for w in words.listed[2:]] == sorted(counts.values(), reverse=True)
    assert Words.of(texts, min_count=2).listed == (*SPECIAL, "a", "c")
    ids = words.encode(texts, length=4)
    for n in range(2, 7):
        assert words.restrict(known_words(ids, len(words), n)) == Words.of(texts, max_words=n)


def test_renumbering_twice_is_renumbering_once():
    ids = torch.randint(0, 9, (5, 7), generator=torch.Generator().manual_seed(0))
    once = renumbered(renumbered(ids, [0, 1, 3, 4, 8], 9), [0, 1, 3, 4], 5)
    assert torch.equal(once, renumbered(ids, [0, 1, 4, 8], 9))


@pytest.mark.parametrize(
    ("rows", "settings", "error"),
    [
        (["a fig,x", " ,y", "a date,"], {}, "2 rows without 'text' or 'label': line 3, line 4"),
        (["a fig,x"], {"text": "body"}, "no column of texts 'body'. Its columns: text, label"),
        (["a fig,x"], {"text": "label"}, "no column of texts 'label'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, rows, settings, error):
    with pytest.raises(DataError, match=error):
        read_texts(str(write(tmp_path / "a.csv", rows)), ReadConfig(**settings))


def test_vocabularies_and_settings_check_themselves():
    with pytest.raises(DataError, match="starts with"):
        Words(("fig", "date"))
    with pytest.raises(DataError, match="no word twice"):
        Words((*SPECIAL, "fig", "fig"))
    for settings in ({"max_words": 2}, {"max_length": 0}):
        with pytest.raises(ConfigError, match="max_words"):
            ReadConfig(**settings)
    with pytest.raises(DataError, match="No file"):
        load_data("text:/nowhere.csv")

"""Readers: every good file becomes a document, every bad one a failure that names it."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from ragtuned_pipeline.corpus.readers import CorpusError, read_folder
from ragtuned_pipeline.item_store import open_items
from ragtuned_pipeline.tables import Failure, check_schema


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(data)
    return folder


def read(folder: Path, files: dict[str, str | bytes]) -> tuple[list[dict[str, Any]], list[Failure]]:
    table, failures = read_folder(write(folder, files), 20)
    check_schema("documents", table)
    return table.to_pylist(), failures


def reasons(failures: list[Failure]) -> dict[str, str]:
    assert all(f.stage == "documents" and f.reason.startswith(f.item_id) for f in failures)
    return {f.item_id: f.reason.removeprefix(f.item_id).strip() for f in failures}


def test_golden(tmp_path: Path) -> None:
    rows, failures = read(
        tmp_path,
        {
            "b/notes.md": "# 3 January 2033\r\n\r\nIt rained.\r\n",
            "a.txt": "\ufeffNothing but prose.",
            "talk.txt": "Title: The Keel\nTime: 2034-01-17 18:00\n\nAnn: Hello.\nBob: Hi.\n",
            "2031-02-03_walk.md": "# The walk\nWe walked.",
            ".hidden/x.txt": "hidden",
            ".hidden.txt": "hidden",
        },
    )
    assert failures == []
    columns = ("human_readable_id", "path", "format", "title", "creation_date", "text")
    assert [tuple(row[c] for c in columns) for row in rows] == [
        (0, "2031-02-03_walk.md", "markdown", "The walk", "2031-02-03", "# The walk\nWe walked."),
        (1, "a.txt", "text", "a", None, "Nothing but prose."),
        (2, "b/notes.md", "markdown", "notes", "2033-01-03", "# 3 January 2033\n\nIt rained.\n"),
        (
            *(3, "talk.txt", "chat", "The Keel", "2034-01-17"),
            "Title: The Keel\nTime: 2034-01-17 18:00\n\nAnn: Hello.\nBob: Hi.\n",
        ),
    ]
    assert [row["id"] for row in rows] == [
        "doc-abf5940fab673d18987a",
        "doc-3182d1e66a9079a47b6a",
        "doc-78adbd971d2a625117c8",
        "doc-0ea0610cd83789098b46",
    ]


def test_ids_follow_path_and_text(tmp_path: Path) -> None:
    one, _ = read(tmp_path / "one", {"a.txt": "Same.", "b.txt": "First."})
    two, _ = read(tmp_path / "two", {"a.txt": "Same.", "b.txt": "Second."})
    assert one[0]["id"] == two[0]["id"]
    assert one[1]["id"] != two[1]["id"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "iso-8859-1"])
def test_western_encodings(tmp_path: Path, encoding: str) -> None:
    text = "The café on the Marktstraße paid £40 for it. Ms. Müller stayed for hours."
    rows, failures = read(tmp_path, {"a.txt": text.encode(encoding)})
    assert (rows[0]["text"], failures) == (text, [])


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Привет, как дела? Сегодня хорошая погода в городе."),
        ("cp932", "今日はいい天気ですね。散歩に行きましょう。"),
        ("cp1250", "Zażółć gęślą jaźń, proszę bardzo, dziękuję."),
    ],
)
def test_other_encodings(tmp_path: Path, encoding: str, text: str) -> None:
    rows, _ = read(tmp_path, {"a.txt": text.encode(encoding)})
    assert rows[0]["text"] == text


def test_characters_are_composed(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, {"a.txt": unicodedata.normalize("NFD", "Müller")})
    assert rows[0]["text"] == "Müller"


def test_json_records(tmp_path: Path) -> None:
    records = [
        {"title": "One", "text": "It rained.", "date": "2031-02-03", "place": "Käl", "n": 1},
        {"body": "It snowed."},
        {"place": "nowhere"},
        7,
        "Only words.",
        {"content": "It rained."},
        {"text": "Half \ud83d."},
    ]
    rows, failures = read(tmp_path, {"r.json": json.dumps(records)})
    columns = ("path", "format", "title", "creation_date", "text", "raw_data")
    rest = '{"date": "2031-02-03", "n": 1, "place": "Käl", "title": "One"}'
    assert [tuple(row[c] for c in columns) for row in rows] == [
        ("r.json#1", "record", "One", "2031-02-03", "It rained.", rest),
        ("r.json#2", "record", "r #2", None, "It snowed.", None),
        ("r.json#5", "record", "r #5", None, "Only words.", None),
    ]
    assert reasons(failures) == {
        "r.json#3": "has no text: none of the fields text, content, body, message",
        "r.json#4": "is int where a record (an object) is expected",
        "r.json#6": "has the same text as r.json#1, which is kept",
        "r.json#7": "holds half a character (a lone surrogate) that no text can hold",
    }


def test_json_lines(tmp_path: Path) -> None:
    lines = '{"text": "One."}\n\n{"text": "Two.}\n{"text": "Three."}\n'
    rows, failures = read(tmp_path, {"r.jsonl": lines})
    assert [row["path"] for row in rows] == ["r.jsonl#1", "r.jsonl#4"]
    assert "line 3 column 10" in reasons(failures)["r.jsonl#3"]
    # The same in a file that is called .json.
    assert [row["text"] for row in read(tmp_path / "j", {"r.json": lines})[0]] == ["One.", "Three."]


CHAT = (
    "Time: 2031-02-03\nAnn Orr: Hello.\nBob: Hi.\nTime: 2031-02-04\nAnn Orr: A cake:\n- Flour: 2 kg"
)


@pytest.mark.parametrize(
    "value",
    [
        [
            {"speaker": "Ann Orr", "text": "Hello.", "time": "2031-02-03 10:00"},
            {"speaker": "Bob", "text": "Hi.", "time": "2031-02-03 10:01"},
            {"speaker": "Ann Orr", "text": "A cake:\nFlour: 2 kg", "time": "2031-02-04T09:00:00Z"},
        ],
        {
            "messages": [
                {"from": "Ann Orr", "text": ["Hel", {"text": "lo."}], "date": 1927879200},
                {"from": "Bob", "text": "Hi.", "date": 1927879260},
                {"from": "Bob", "text": "", "date": 1927879260},
                {"from": "Ann Orr", "text": "A cake:\nFlour: 2 kg", "date": 1927965600000},
            ]
        },
    ],
)
def test_chat_exports(tmp_path: Path, value: Any) -> None:
    rows, failures = read(tmp_path, {"chat.json": json.dumps(value)})
    assert failures == []
    columns = ("path", "format", "creation_date", "text")
    assert [tuple(row[c] for c in columns) for row in rows] == [
        ("chat.json", "chat", "2031-02-03", CHAT)
    ]


def test_articles_by_one_author_are_no_chat(tmp_path: Path) -> None:
    articles = [{"author": "Bo", "title": f"No {n}", "text": f"Text {n}."} for n in (1, 2)]
    rows, _ = read(tmp_path, {"a.json": json.dumps({"articles": articles})})
    assert [row["format"] for row in rows] == ["record", "record"]


def test_csv(tmp_path: Path) -> None:
    rows, failures = read(
        tmp_path,
        {
            "text.csv": 'id,Text,date\n1,"It rained, much.",2031-02-03\n2,Snow\n\n3,Sun.,\n4,,\n',
            "people.csv": "name;town;title\nAnn Orr;Kelstrand;Dr.\nBob;;\n",
            "broken.csv": 'text,n\nGood row.,1\n"never closed,2\nlost,3\n',
        },
    )
    columns = ("path", "title", "creation_date", "text", "raw_data")
    assert [tuple(row[c] for c in columns) for row in rows] == [
        ("broken.csv#1", "broken #1", None, "Good row.", '{"n": "1"}'),
        ("people.csv#1", "Dr.", None, "name: Ann Orr\ntown: Kelstrand\ntitle: Dr.", None),
        ("people.csv#2", "people #2", None, "name: Bob", None),
        *(
            ("text.csv#1", "text #1", "2031-02-03", "It rained, much.", RAIN),
            ("text.csv#3", "text #3", None, "Sun.", '{"date": "", "id": "3"}'),
        ),
    ]
    assert reasons(failures) == {
        "broken.csv#2": "is not valid CSV: unexpected end of data in the row that ends at line 4; "
        "no row from there on was read",
        "text.csv#2": "row 2 (line 3) has 2 fields where the header has 3",
        "text.csv#4": "has no text: its field 'Text' is empty",
    }


RAIN = '{"date": "2031-02-03", "id": "1"}'


def test_fifty_bad_files_among_good_ones(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    good: dict[str, str | bytes] = {f"good/{n:02}.txt": f"Text {n} is good." for n in range(30)}
    bad: dict[str, str | bytes] = {
        **{f"bad/empty{n}.txt": "" for n in range(6)},
        **{f"bad/white{n}.md": " \n\t\n" for n in range(6)},
        **{f"bad/binary{n}.txt": bytes(range(256)) * 3 for n in range(5)},
        **{f"bad/undecodable{n}.txt": "Grüße, é".encode() * 9 + b"\xe9 bad" for n in range(4)},
        **{f"bad/mark{n}.txt": b"\xef\xbb\xbfabc\xff" for n in range(2)},
        **{f"bad/utf16{n}.txt": b"\xff\xfea\x00b" for n in range(2)},
        **{f"bad/malformed{n}.json": '{"text": "x",\n "y" 1}' for n in range(4)},
        **{f"bad/deep{n}.json": "[" * 100_000 for n in range(2)},
        **{f"bad/textless{n}.json": '{"name": "x"}' for n in range(3)},
        **{f"bad/nothing{n}.json": "[]" for n in range(2)},
        **{f"bad/header{n}.csv": "text,n\n" for n in range(2)},
        **{f"bad/large{n}.txt": "x" * 1_100_000 for n in range(2)},
        **{f"bad/unknown{n}.xyz": "text" for n in range(2)},
        **{f"bad/picture{n}.png": b"\x89PNG\r\n\x1a\n\0\0\0" for n in range(2)},
        "good/same.txt": "Text 7 is good.",
    }
    write(folder, good | bad)
    (tmp_path / "outside.txt").write_text("secret")
    links = {"bad/out.txt": "../../outside.txt", "bad/nowhere.txt": "gone.txt", "bad/up": "../.."}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "inside").symlink_to("good")  # no second copy, no failure
    os.mkfifo(folder / "bad/pipe.txt")
    (folder / "bad/closed.docx").write_bytes(b"PK\x03\x04")

    table, failures = read_folder(folder, 1)
    assert table["path"].to_pylist() == sorted(good)
    found = reasons(failures)
    assert sorted(found) == sorted([*bad, *links, "bad/pipe.txt", "bad/closed.docx"])
    assert len(found) == 50
    expected = {
        "bad/empty0.txt": "is empty",
        "bad/white0.md": "holds only white space",
        "bad/binary0.txt": "is binary, not text",
        "bad/undecodable0.txt": "in no encoding that can be told",
        "bad/mark0.txt": "begins as UTF-8-SIG",
        "bad/utf160.txt": "begins as UTF-16",
        "bad/malformed0.json": "line 2 column 6",
        "bad/deep0.json": "is not JSON that can be read",
        "bad/textless0.json": "has no text",
        "bad/nothing0.json": "is an empty list",
        "bad/header0.csv": "has a header and no rows",
        "bad/large0.txt": "has 1.1 MB, more than the 1 allowed",
        "bad/unknown0.xyz": "unknown format .xyz",
        "bad/picture0.png": "is binary",
        "good/same.txt": "has the same text as good/07.txt",
        "bad/out.txt": "leads out of the folder",
        "bad/up": "leads out of the folder",
        "bad/nowhere.txt": "is a link to nothing",
        "bad/closed.docx": "docx",
        "bad/pipe.txt": "is no ordinary file",
    }
    for name, part in expected.items():
        assert part in found[name], (name, found[name])
    assert all(failure.at.endswith("+00:00") for failure in failures)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions(tmp_path: Path) -> None:
    write(tmp_path, {"good.txt": "Good.", "shut.txt": "x", "shut/a.txt": "x"})
    for name in ("shut.txt", "shut"):
        (tmp_path / name).chmod(0)
    _, failures = read_folder(tmp_path, 20)
    (tmp_path / "shut").chmod(0o700)
    assert reasons(failures).keys() == {"shut", "shut.txt"}
    assert "permissions" in reasons(failures)["shut.txt"]


def test_two_reads_are_the_same(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "One.", "b.json": '[{"text": "Two."}]', "c.txt": ""})
    first, second = read_folder(tmp_path, 20), read_folder(tmp_path, 20)
    assert first[0].equals(second[0])
    assert first[1] == second[1]


def test_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="does not exist"):
        read_folder(tmp_path / "nowhere", 20)
    with pytest.raises(CorpusError, match="it is empty"):
        read_folder(tmp_path, 20)
    (tmp_path / "a.txt").touch()
    with pytest.raises(CorpusError, match=r"nothing in it could be read.*a\.txt is empty"):
        read_folder(tmp_path, 20)
    with pytest.raises(CorpusError, match="is a file"):
        read_folder(tmp_path / "a.txt", 20)


def test_without_markitdown_the_reason_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "markitdown", None)
    _, failures = read(tmp_path, {"a.txt": "Good.", "b.docx": b"PK\x03\x04"})
    assert "pip install 'ragtuned-pipeline[documents]'" in failures[0].reason


def test_what_markitdown_makes_is_read(tmp_path: Path) -> None:
    pytest.importorskip("markitdown")
    page = "<html><body><h1>The dam</h1><p>It broke.</p></body></html>"
    rows, failures = read(tmp_path, {"a.html": page, "b.docx": b"PK\x03\x04 no document"})
    assert [(r["title"], r["format"], r["text"]) for r in rows] == [
        ("The dam", "markdown", "# The dam\n\nIt broke.")
    ]
    assert failures[0].reason == "b.docx is damaged, or no .docx file"


def test_a_converted_file_is_converted_once(tmp_path: Path) -> None:
    pytest.importorskip("markitdown", reason="the extra [documents] is not installed")
    folder, store = tmp_path / "folder", tmp_path / "items.sqlite"
    folder.mkdir()
    (folder / "a.html").write_text("<p>It broke.</p>", encoding="utf-8")
    read, counted = [], []
    for page in ("It broke.", "It broke.", "It held."):
        (folder / "a.html").write_text(f"<p>{page}</p>", encoding="utf-8")
        with open_items(store, "documents") as items:
            documents, _ = read_folder(folder, 1, items)
            counted.append((items.asked, items.known))
        read.append(documents)
    assert counted == [(1, 0), (1, 1), (1, 0)]
    assert read[0].equals(read[1])
    assert read[2].equals(read_folder(folder, 1)[0])

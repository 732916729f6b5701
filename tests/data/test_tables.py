"""The reader of CSV and JSON lines: what other programs left behind is mended, or refused."""

import gzip
import json
import logging

import pytest

from medsd_jax.data.sources.tables import read_csv, read_json_lines, text_cell
from medsd_jax.errors import UserError

ROWS = [{"file": "a.png", "text": "One, two; three."}, {"file": "b.png", "text": "x\ty"}]


def cells(table):
    return [row for _, row in table.rows]


@pytest.mark.parametrize(
    "text",
    [
        'file,text\na.png,"One, two; three."\nb.png,x\ty\n',
        'file;text\na.png;"One, two; three."\nb.png;x\ty\n',
        'file\ttext\na.png\tOne, two; three.\nb.png\t"x\ty"\n',
        'sep=;\nfile;text\na.png;"One, two; three."\nb.png;x\ty\n',
        'sep=,\r\nfile,text\r\na.png,"One, two; three."\r\nb.png,x\ty\r\n',
        '"sep=;"\nfile;text\na.png;"One, two; three."\nb.png;x\ty\n',
        ' file , text \na.png , "One, two; three."\nb.png, x\ty \n'.replace(' "', '"'),
        ',file,text\n0,a.png,"One, two; three."\n1,b.png,x\ty\n',
        'Unnamed: 0,file,text\n0,a.png,"One, two; three."\n1,b.png,x\ty\n',
        '\nfile,text\n\na.png,"One, two; three."\n,\nb.png,x\ty\n,,,\n',
        'file,text\ra.png,"One, two; three."\rb.png,x\ty\r',
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_one_table_in_many_forms(tmp_path, text, mark):
    (tmp_path / "t.csv").write_bytes((mark + text).encode())
    table = read_csv(tmp_path / "t.csv")
    assert table.names == ("file", "text") and cells(table) == ROWS


def test_packed(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert cells(read_csv(tmp_path / "t.csv.gz")) == [{"a": "1", "b": "2"}]
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n" * 99)[:-9])
    with pytest.raises(UserError, match="not a whole gzip file"):
        read_csv(tmp_path / "t.csv.gz")


def test_empty_lines_are_counted_and_lines_are_those_of_the_file(tmp_path, caplog):
    (tmp_path / "t.csv").write_text('sep=,\na,b\n1,"x\ny"\n,\n\n2,z\n')
    table = read_csv(tmp_path / "t.csv")
    assert [where.rpartition(" ")[2] for where, _ in table.rows] == ["3", "7"]
    assert "1 empty lines are skipped" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,a,text\nx,1,y\n", "two columns 'text'"),
        (b"text, text\nx,y\n", "two columns 'text'"),
        (b"a,text\n1,x, y\n", "line 2 has more cells than the header; quote texts with commas"),
        (b"a;text\n1;x; y\n", "line 2 has more cells than the header; quote texts with semicolons"),
        (b"a,b\nx,\0\n", "line 2 holds a NUL"),
        (b"a,b\n\nx,\xe9\n", "line 3 is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "line 1 is not UTF-8"),
        (b'a,b\n1,"2\n', "not readable CSV"),
    ],
)
def test_a_csv_with_two_meanings_is_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_csv(tmp_path / "t.csv")
    assert "\n" not in str(caught.value)


def test_a_csv_that_is_a_folder_or_not_there(tmp_path):
    for name in ("", "absent.csv"):
        with pytest.raises(UserError, match="cannot be read"):
            read_csv(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": ', "line 2 is not JSON"),
        (b'{"a": 1}{"a": 2}\n', "line 1 is not JSON"),
        (b"[1]\n", "not a JSON object, but a list"),
        (b"null\n", "not a JSON object, but null"),
        (b'"x"\n', "not a JSON object, but a text"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", "nested too deep"),
        (b'{"a": "\\u0000"}\n', "a NUL character"),
        (b'{"a": {"b": ["\\ud800"]}}\n', "half of a surrogate pair"),
        (b'{"\\udfff": 1}\n', "half of a surrogate pair"),
        (b'{"a": 1, "a": 2}\n', "two values of 'a'"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2 is not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", "line 1 is not JSON"),
    ],
)
def test_lines_that_are_no_objects_are_refused(tmp_path, content, message):
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json_lines(tmp_path / "t.jsonl")
    assert len(str(caught.value)) < 400


def test_json_lines_hold_whole_pairs_and_other_separators_of_lines(tmp_path):
    texts = ["\U0001f600", "one\u2028two", "é"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    lines.append(r'{"text": "\ud83d\ude00"}')
    (tmp_path / "t.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    result = cells(read_json_lines(tmp_path / "t.jsonl"))
    assert [row["text"] for row in result] == [*texts, "\U0001f600"]


@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}, 3, True, 1.5])
def test_what_is_no_text_is_no_caption(value):
    with pytest.raises(UserError, match=r"here: text is .*: write one text"):
        text_cell({"text": value}, "text", "here")


def test_numbers_as_ids(caplog):
    caplog.set_level(logging.INFO)
    values = [7, 7.0, "7", " 7 ", None, float("nan")]
    result = [text_cell({"id": value}, "id", "here", numbers=True) for value in values]
    assert result == ["7", "7", "7", "7", "", ""]

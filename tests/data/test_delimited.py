import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa.data import delimited
from hansa.data.source import Source, read, write_csv
from hansa.data.table import Table
from hansa.errors import DataError


@pytest.fixture
def csv_file(tmp_path):
    def write(content: str | bytes, name: str = "table.csv", encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), max_size=5).map("c{}".format)
numbers = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
words = st.one_of(st.none(), cells.map("t{}".format))


@st.composite
def tables(draw):
    rows = draw(st.integers(1, 6))
    columns = {}
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        if draw(st.booleans()):
            columns[name] = draw(st.lists(numbers, min_size=rows, max_size=rows))
        else:
            columns[name] = [*draw(st.lists(words, min_size=rows - 1, max_size=rows - 1)), "t"]
    return Table.of(columns)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables())
def test_a_table_written_as_csv_is_read_back_the_same(table, tmp_path, same):
    write_csv(tmp_path / "table.csv", table)
    same(read(tmp_path / "table.csv"), table)


def test_a_file_of_many_columns_is_read_some_at_a_time(tmp_path, monkeypatch, same):
    monkeypatch.setattr(delimited, "_AT_ONCE", 7)
    wide = Table.of({f"x{i}": [f"t{i}", None, "t"] if i % 5 == 0 else [i, None, i / 4] for i in range(40)})
    write_csv(tmp_path / "wide.csv", wide)
    same(read(tmp_path / "wide.csv"), wide)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gb18030", "gbk", "big5"])
def test_chinese_files_are_read_in_their_encoding(csv_file, encoding):
    path = csv_file("\r\n".join(["年,城市", "41,上海", ",北京", "39,"]), "病人数据.csv", encoding)
    table = read(Source(path=str(path), encoding=encoding))
    assert table.names == ("年", "城市")
    np.testing.assert_array_equal(table.column("年"), [41, np.nan, 39])
    assert table.column("城市").tolist() == ["上海", "北京", None]


def test_utf_8_with_a_byte_order_mark_needs_no_encoding(csv_file):
    assert read(csv_file("\ufeff年,b\n1,2\n")).names == ("年", "b")


def test_a_wrong_encoding_names_the_file_the_byte_and_the_way_out(csv_file):
    path = csv_file("id,城市\n1,上海\n", encoding="gb18030")
    with pytest.raises(DataError, match=r"table\.csv is not text in utf-8 \(at byte 3\)") as caught:
        read(path)
    assert "encoding" in caught.value.remedy
    assert "gb18030" in caught.value.remedy


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_the_byte_of_a_wrong_encoding_is_exact_far_into_the_file(csv_file, encoding, monkeypatch):
    monkeypatch.setattr(delimited, "_CHUNK", 7)
    start = "城市\n上海\n北京\n".encode(encoding) * 5000
    path = csv_file(start + b"a\xff\xffb\n")
    with pytest.raises(DataError, match=rf"at byte {len(start) + 1}\)"):
        read(Source(path=str(path), encoding=encoding))


def test_a_utf_16_file_read_as_utf_8_is_told_apart(csv_file):
    with pytest.raises(DataError, match="set encoding = 'utf-16'"):
        read(csv_file("a,b\n1,2\n", encoding="utf-16"))
    with pytest.raises(DataError, match="utf-16-le"):
        read(csv_file("a,b\n1,2\n", encoding="utf-16-le"))
    with pytest.raises(DataError, match="not text in utf-16"):
        read(Source(path=str(csv_file("a,b\n1,2\n", encoding="utf-16-le")), encoding="utf-16"))


@pytest.mark.parametrize("encoding", ["gbk18030", "hex"])
def test_an_encoding_that_is_none_is_named(csv_file, encoding):
    with pytest.raises(DataError, match=f"no encoding '{encoding}'"):
        read(Source(path=str(csv_file("a\n1\n")), encoding=encoding))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends_are_detected(csv_file, delimiter, end):
    lines = [["a", '"b c"'], ["1", "x"], ["2", '"y,;\tz"']]
    table = read(csv_file(end.join(delimiter.join(line) for line in lines)))
    assert table.names == ("a", "b c")
    assert table.column("a").tolist() == [1.0, 2.0]
    assert table.column("b c").tolist() == ["x", "y,;\tz"]


def test_a_decimal_comma_does_not_pass_for_a_delimiter(csv_file):
    table = read(csv_file("weight, kg;height, cm\n1,5;2,5\n2,5;3,5\n"))
    assert table.names == ("weight, kg", "height, cm")
    assert table.column("height, cm").tolist() == ["2,5", "3,5"]


@pytest.mark.parametrize("header", ['"a\nb"', '"a\r\nb"'])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quoted_line_ends_stay_inside_their_cell(csv_file, header, end):
    table = read(csv_file(end.join([f"{header},c", '"x\ny",1', '"x\r\ny",2', '"say ""so""",3', ""])))
    assert table.names == (header.strip('"'), "c")
    assert table.column(table.names[0]).tolist() == ["x\ny", "x\r\ny", 'say "so"']


def test_blank_lines_between_rows_are_no_rows(csv_file):
    table = read(csv_file("a,b\n1,2\n\n3,4\n\n"))
    assert table.column("b").tolist() == [2.0, 4.0]


def test_a_long_cell_is_read_whole(csv_file):
    assert len(read(csv_file('a,b\n1,"' + "x,\n" * 100_000 + '"\n')).column("b")[0]) == 300_000


def test_missing_cells_are_told_from_text(csv_file):
    spellings = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?", " NA "]
    table = read(csv_file("n,t\n" + "".join(f"{s},{s}\n" for s in spellings) + "-1.5e3,Nada\n"))
    assert table.kind("n") == "number"
    assert np.isnan(table.column("n")[:-1]).all()
    assert table.column("n")[-1] == -1500.0
    assert table.column("t").tolist() == [None] * len(spellings) + ["Nada"]


def test_one_text_cell_makes_a_column_text(csv_file):
    assert read(csv_file("a\n1\n2\nx\n")).column("a").tolist() == ["1", "2", "x"]


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e400"])
def test_an_infinite_number_names_its_row(csv_file, cell):
    with pytest.raises(DataError, match=r"column 'b', row 2: .*inf"):
        read(csv_file(f"a,b\n1,1\n2,{cell}\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3\n4,5\n", "line 3: 1 cells, where the header has 2"),
        ('a,b\n"x\ny",2\n3,4,5\n', "line 4: 3 cells, where the header has 2"),
        ('a,b\n1,2\n"x,3\n4,5\n', "line 3: .*end of data"),
        ('a,b\n1,2\n"x"y,3\n4,5\n', "line 3: "),
        ("a,b\r\n1,2\n3,4\r\n5,6\r\n", "line ends may be mixed"),
        ("\n\na,b\n1,2\n", "starts with a blank line"),
        ("a,b,a\n1,2,3\n", "names 'a' twice"),
        ("a,,c\n1,2,3\n", "column 2 has no name"),
        ("a,b\n", "empty table"),
        ("", "empty table"),
        ("\n\n", "empty table"),
        ("\ufeff", "empty table"),
    ],
)
def test_a_malformed_file_is_refused_where_it_is_malformed(csv_file, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read(csv_file(content))
    assert "table.csv" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("rows", [10, 200_000])
def test_a_quote_left_open_never_swallows_rows_in_silence(csv_file, rows):
    with pytest.raises(DataError, match=f"line {rows + 2}"):
        read(csv_file("a,b\n" + "1,2\n" * rows + '"x,3\n' + "1,2\n" * rows))


def test_rows_of_a_large_file_keep_their_order(tmp_path):
    rows = np.arange(250_000)
    write_csv(tmp_path / "a.csv", Table.of({"a": rows, "b": np.where(rows % 2, "x", "\r\n")}))
    table = read(tmp_path / "a.csv")
    np.testing.assert_array_equal(table.column("a"), rows)
    assert (table.column("b") == np.where(rows % 2, "x", "\r\n")).all()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows allows no such names")
def test_a_file_name_with_wildcards_reads_that_file_alone(csv_file):
    csv_file("a\n7\n", "数据1.csv")
    assert read(csv_file("a\n1\n", "数据?.csv")).column("a").tolist() == [1.0]
    assert read(csv_file("a\n2\n", "数据[1].csv")).column("a").tolist() == [2.0]


def test_a_folder_called_like_a_partition_adds_no_column(tmp_path):
    (tmp_path / "year=2020").mkdir()
    write_csv(tmp_path / "year=2020" / "a.csv", Table.of({"a": [1]}))
    assert read(tmp_path / "year=2020" / "a.csv").names == ("a",)


def test_reading_leaves_nothing_behind(csv_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read(Source(path=str(csv_file("a\n1\n", encoding="utf-16")), encoding="utf-16"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]

import os
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stemcell_lit.errors import UserError
from stemcell_lit.patches.tables import read_table

KNOWN = ["group", "track", "movie", "frame", "time_h", "x", "y"]
NEEDED = ["path", "label"]
QUIET = [HealthCheck.function_scoped_fixture]


def read(tmp_path, content):
    file = tmp_path / "patches.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(file, NEEDED, KNOWN)


cell = st.text(st.sampled_from(list("abcXYZ019 _-/<'äßé;,|\"")), min_size=1, max_size=8).filter(
    lambda t: t.strip() and not t.startswith("#")
)


@settings(max_examples=80, deadline=1000, suppress_health_check=QUIET)
@given(
    rows=st.lists(
        st.tuples(cell, st.integers(0, 4), st.integers(0, 10**6)), min_size=1, max_size=6
    ),
    delimiter=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    end=st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    everything_quoted=st.booleans(),
    trailing=st.booleans(),
)
def test_a_table_reads_to_the_same_rows_however_it_is_written(
    tmp_path, rows, delimiter, encoding, end, everything_quoted, trailing
):
    def field(text):
        quote = everything_quoted or any(c in text for c in f'{delimiter}"')
        return '"' + text.replace('"', '""') + '"' if quote else text

    lines = [["path", "label", "frame"]]
    lines += [[f"{name}.png", "abcde"[label], str(frame)] for name, label, frame in rows]
    text = end.join(
        delimiter.join(map(field, line)) + delimiter * (trailing and i > 0)
        for i, line in enumerate(lines)
    )
    table = read(tmp_path, (text + end).encode(encoding))
    assert table.rows["path"].tolist() == [f"{name}.png".strip() for name, *_ in rows]
    assert table.rows["label"].tolist() == ["abcde"[label] for _, label, _ in rows]
    assert table.whole("frame").tolist() == [frame for *_, frame in rows]


@settings(max_examples=150, deadline=1000, suppress_health_check=QUIET)
@given(
    start=st.sampled_from([b"", b"path,label\n", b"\xff\xfe", b'path;label;frame\n"', b"sep=;\n"]),
    noise=st.binary(max_size=200) | st.text('",;\n\rab0#.\t|', max_size=200).map(str.encode),
)
def test_random_bytes_are_read_or_refused_in_one_sentence(tmp_path, start, noise):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            table = read(tmp_path, start + noise)
        except UserError as error:
            assert "patches.csv" in str(error)
        else:
            assert (table.rows[NEEDED] != "").all(axis=None)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("sep=;\npath;label\na.png;x", "x"),
        ("# made by me\n\npath,label\n\na.png,x\n,\n", "x"),
        ("#path,label\na.png,x", "x"),
        ('"","path","label"\n"1","a.png","x"', "x"),
        ('"path","label"\n"1","a.png","x"', "x"),
        ("Unnamed: 0,path,label\n0,a.png,x", "x"),
        ("Path,LABEL\na.png,x", "x"),
        ("path, label\na.png, x \n", "x"),
        ("\ufeffpath,label\na.png,\u00a0x\u200b\ufeff", "x"),
        ("path,label\na.png,cafe\u0301", "caf\u00e9"),
        ('path,label,notes\na.png,x,"two\nlines"', "x"),
        *((f"path,label\na.png,{n}", n) for n in ("NA", "None", "null", "nan", "yes", "1", "007")),
        ("path,label\na.png,UNSURE ", "unsure"),
    ],
)
def test_what_spreadsheets_and_scripts_add_is_understood(tmp_path, text, label):
    assert read(tmp_path, text).rows[["path", "label"]].values.tolist() == [["a.png", label]]


def test_windows_western_is_read_where_nothing_else_fits_and_said(tmp_path):
    with pytest.warns(UserWarning, match="read as Windows Western .* 'früh'"):
        table = read(tmp_path, "path,label\na.png,früh\n".encode("cp1252"))
    assert table.rows["label"].tolist() == ["früh"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("path,label\na.png,früh\n".encode("cp850"), "line 2: byte .* encoding cannot be told"),
        ("path,label\na.png,ранний\n".encode("cp1251"), "encoding cannot be told"),
        ("path,label\na.png,früh\n".encode() + "b.png,früh\n".encode("cp1252"), "one encoding"),
        ("path,label\na.png,x\n".encode("utf-16-le"), "holds NUL, as UTF-16 without its mark"),
        (b"PK\x03\x04rest", "is a spreadsheet or ZIP file"),
        ("path label\na.png x", "found the delimiter of no CSV in 'path label'"),
        ("path,label\na.png;x", "line 2: found the delimiter semicolon, the header has comma"),
        ("path,label\na.png,x,more", "line 2: found 3 fields, the header names 2"),
        ("path,label\na.png", "line 2 has no label"),
        ("path,label,track\na.png,x,\nb.png,x,1", "line 2 has no track"),
        ('path,label\n"a.png,x\nb.png,x', "line 2: quotes that do not pair"),
        ('path,label,n\na.png,x,"\nb.png,y,"\n', "line 2: a quote opens a field that goes on"),
        ("path,label,Label\na.png,x,y\n", None),
        ("path,label,label\na.png,x,y\n", "found 2 columns 'label'"),
        ("File,label\na.png,x", "column 'path' is missing, found File, label .*rename 'File'"),
        ("path,label\n", "no rows"),
        ("", "is empty"),
        ("path,label\na.png,dense\nb.png,Dense", r"'dense' \(line 2\) and 'Dense' \(line 3\)"),
        ("path,label\na.png,dense\nb.png,d\u0435nse", "look alike"),
        ("path,label\na.png,late ana\nb.png,late_ana", "differ in blanks, hyphens"),
        ("path,label\na.png,a b\nb.png,a  b", "look alike"),
        ("path,label,group\na.png,x,g1\nb.png,x,G1", "column group: found 'g1'"),
        ("path,label\na.png,x\x07y", "line 2, column label: .* cannot be printed"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_for_its_true_reason(tmp_path, content, says):
    if says is None:
        assert read(tmp_path, content).rows["label"].tolist() == ["x"]
        return
    with pytest.raises(UserError, match=says):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("cells", "delimiter", "values"),
    [
        (["0,5", "1,25"], ";", [0.5, 1.25]),
        (['"0,5"', '"1,250"'], ",", [0.5, 1.25]),
        (["1e3", "+3"], ",", [1000, 3]),
        (["\u22120.5", ".5"], ",", [-0.5, 0.5]),
        (["1.250", "0.5"], ";", [1.25, 0.5]),
        (['"1,200"', '"2,200"'], ",", "surely decimal"),
        (["1.200", "900"], ";", "surely decimal"),
        (["1.234,5", "2"], ";", "one decimal sign"),
        (["0,5", "1.5"], ";", "one decimal sign"),
        (["1,234,567", "1"], ";", "expected a number"),
        (["inf", "1"], ",", "line 2, column x: found 'inf', expected a finite number"),
        (["1", "nan"], ",", "line 3, column x: found 'nan'"),
        (["1e999", "1"], ",", "finite"),
        (["\u0661", "1"], ",", "finite"),
        (["1_0", "1"], ",", "finite"),
        (["0x10", "1"], ",", "finite"),
        (["1:30", "1"], ",", "finite"),
    ],
)
def test_numbers_are_read_only_where_they_have_one_value(tmp_path, cells, delimiter, values):
    rows = [["path", "label", "x"], ["a.png", "a", cells[0]], ["b.png", "a", cells[1]]]
    table = read(tmp_path, "\n".join(delimiter.join(r) for r in rows))
    if isinstance(values, str):
        with pytest.raises(UserError, match=values):
            table.numbers("x")
    else:
        assert np.allclose(table.numbers("x"), values)


@pytest.mark.parametrize(
    ("cell", "says"),
    [("3.0", None), ("0.7", "whole"), ("-1", "from 0"), ("inf", "finite"), ("1e20", "whole")],
)
def test_frames_are_whole_numbers(tmp_path, cell, says):
    table = read(tmp_path, f"path,label,frame\na.png,x,{cell}\n")
    if says is None:
        assert table.whole("frame").tolist() == [3]
    else:
        with pytest.raises(UserError, match=f"line 2, column frame: found '{cell}', .*{says}"):
            table.whole("frame")


def test_points_between_thousands_beside_decimal_commas_are_refused(tmp_path):
    table = read(tmp_path, "path;label;frame;time_h\na.png;x;1.000;0,5\n")
    with pytest.raises(UserError, match="column frame: found '1.000'"):
        table.whole("frame")


def test_lines_of_names_and_units_are_left_out_with_a_notice(tmp_path):
    text = "path,label,frame,x\nFile,Class,Frame,X\n,,,(micron)\na.png,a,0,1\n"
    with pytest.warns(UserWarning, match="tells names or units") as said:
        table = read(tmp_path, text)
    assert table.rows["path"].tolist() == ["a.png"] and len(said) == 2
    assert table.rows["line"].tolist() == [4]


@pytest.mark.parametrize("cell", ["NA", "soon", "n/a", "-"])
def test_a_row_of_data_is_never_taken_for_units(tmp_path, cell):
    table = read(tmp_path, f"path,label,frame\na.png,x,{cell}\nb.png,x,1\n")
    with pytest.raises(UserError, match="line 2, column frame"):
        table.whole("frame")


def test_columns_that_are_not_used_are_named_with_a_hint(tmp_path):
    with pytest.warns(UserWarning, match=r"not used: hours \(rename it time_h .*\), colour"):
        read(tmp_path, "path,label,hours,colour\na.png,x,1,red\n")


def test_equal_rows_count_once_and_conflicts_are_refused(tmp_path):
    table = read(tmp_path, "path,label\na.png,x\nb.png,y\na.png,x\n")
    with pytest.warns(
        UserWarning, match="1 rows repeat an earlier one and count once, first line 4"
    ):
        assert table.once(table.rows, ["path"], "crop")["path"].tolist() == ["a.png", "b.png"]
    table = read(tmp_path, "path,label\na.png,x\nb.png,y\na.png,y\n")
    with pytest.raises(UserError, match="lines 2 and 4 are both about a.png: label 'x' and 'y'"):
        table.once(table.rows, ["path"], "crop")


def test_what_is_no_file_of_text_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "long.csv").write_text("path,label\n" + "a" * 200_000)
    with (tmp_path / "large.csv").open("wb") as stream:
        stream.truncate(2**31)
    for name, says in (
        ("fifo", "no regular file"),
        ("folder", "a folder"),
        ("long", "line 2 is longer"),
        ("large", "expected at most"),
        ("none", "no such file"),
    ):
        with pytest.raises(UserError, match=says):
            read_table(tmp_path / f"{name}.csv", NEEDED)

"""The table of jobs as users write it, and what it says of every wrong row."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.jobs.table import NAME, Row, TableError, read_table


def table(folder: Path, text: str, name: str = "jobs.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(TableError) as raised:
        read_table(path)
    return raised.value.problems


def test_a_row_is_a_job_and_empty_cells_say_nothing(tmp_path: Path) -> None:
    text = '\ufeffname,clip,prompt,seed\nwolf,a.mp4,"a wolf, running",7\n\n,b.mp4,,\n'
    first, second = read_table(table(tmp_path, text))
    assert first == Row(1, "wolf", {"clip": "a.mp4", "prompt": "a wolf, running", "seed": "7"})
    assert second == Row(2, "002", {"clip": "b.mp4"})


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    text = '{"name": "wolf", "seed": 7, "clip": null}\n\n{"Sampler.cfg": 4.5, "x.y": true}\n'
    assert read_table(table(tmp_path, text, "jobs.jsonl")) == [
        Row(1, "wolf", {"seed": 7}),
        Row(2, "002", {"Sampler.cfg": 4.5, "x.y": True}),
    ]


TABLES = {
    "commas": "name,clip,Load Video.file\nwolf,a.mp4,b.mp4\n",
    "semicolons": "name;clip;Load Video.file\nwolf;a.mp4;b.mp4\n",
    "tabs": "name\tclip\tLoad Video.file\nwolf\ta.mp4\tb.mp4\n",
    "told by Excel": "sep=;\nname;clip;Load Video.file\nwolf;a.mp4;b.mp4\n",
    "lines of Windows": "name;clip;Load Video.file\r\nwolf;a.mp4;b.mp4\r\n",
    "a mark and lines before": "\ufeff\n\nname,clip,Load Video.file\nwolf,a.mp4,b.mp4\n",
    "capitals": "Name,CLIP,Load Video.file\nwolf,a.mp4,b.mp4\n",
    "spaces": ' name , clip, "Load Video.file"\n wolf , a.mp4 , "b.mp4"\n',
    "quotes": '"name";"clip";"Load Video.file"\n"wolf";"a.mp4";"b.mp4"\n',
    "empty rows": ",,\nname,clip,Load Video.file\n,,\n\n  ,,  \nwolf,a.mp4,b.mp4\n,,\n",
    "empty columns": "name,,clip,Load Video.file,,\nwolf,,a.mp4,b.mp4,,\n,,,,,\n",
    "cells beyond the header": "name,clip,Load Video.file\nwolf,a.mp4,b.mp4,,,\n",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("name", ["jobs.csv", "jobs.TSV"])
def test_tables_are_read_as_spreadsheets_write_them(tmp_path: Path, text: str, name: str) -> None:
    assert read_table(table(tmp_path, text, name)) == [
        Row(1, "wolf", {"clip": "a.mp4", "Load Video.file": "b.mp4"})
    ]


def test_rows_that_say_nothing_are_not_counted(tmp_path: Path) -> None:
    csv = read_table(table(tmp_path, "clip,seed\n,\na.mp4,1\n,,\nb.mp4,\n"))
    jsonl = read_table(
        table(
            tmp_path,
            '{"clip": "a.mp4", "seed": "1"}\n{}\n'
            '{"clip": null, "seed": " "}\n{" Clip ": "b.mp4"}\n',
            "a.jsonl",
        )
    )
    assert (
        csv
        == jsonl
        == [Row(1, "001", {"clip": "a.mp4", "seed": "1"}), Row(2, "002", {"clip": "b.mp4"})]
    )


def test_what_stands_in_a_cell_does_not_part_it(tmp_path: Path) -> None:
    (row,) = read_table(table(tmp_path, "name;prompt;source\nwolf;a wolf, a fox, a bear;a\tb\n"))
    assert row.cells == {"prompt": "a wolf, a fox, a bear", "source": "a\tb"}
    assert (
        "Put cells with semicolons in quotes"
        in problems(table(tmp_path, "name;prompt\nwolf;one; two\n"))[0]
    )


def test_a_text_with_other_ends_of_lines_is_one_row(tmp_path: Path) -> None:
    (row,) = read_table(table(tmp_path, '{"prompt": "a wolf\u2028a fox"}\r\n', "jobs.jsonl"))
    assert row.cells == {"prompt": "a wolf\u2028a fox"}


def test_all_wrong_rows_are_told_at_once_by_table_row_and_column(tmp_path: Path) -> None:
    found = problems(table(tmp_path, "name,seed\n../up,1\nwolf,2\nWOLF,3\nmore,4,5\n"))
    assert len(found) == 3
    assert found[0].startswith("jobs.csv, row 4: 3 cells below 2 columns. Put cells")
    assert found[1].startswith("jobs.csv, row 1, column 'name': '../up' cannot name a folder")
    assert found[2].startswith("jobs.csv, row 3, column 'name': 'WOLF' is the name of row 2 too")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("jobs.csv", "", "no job in it"),
        ("jobs.csv", "name,seed\n", "no job in it"),
        ("jobs.csv", "seed,seed\n1,2\n", "'seed' in 2 columns"),
        ("jobs.csv", "seed;Seed ; SEED\n1;2;3\n", "'seed' in 3 columns"),
        ("jobs.csv", "name,,seed\nwolf,7,1\n", "row 1: '7' in a column without a name"),
        ("jobs.jsonl", '{"seed": 1, "Seed": 2}\n', "row 1, column 'seed': it comes more than once"),
        ("jobs.jsonl", "[" * 100_000, "row 1: this is no JSON"),
        ("jobs.csv", ";;\n;;\n", "no job in it"),
        ("jobs.jsonl", "{}\n", "no job in it"),
        ("jobs.csv", 'name\n"open\n', "this is no CSV"),
        ("jobs.txt", "name\na\n", "it ends in '.txt'"),
        ("jobs.jsonl", "{half\n", "row 1: this is no JSON"),
        ("jobs.jsonl", "[1]\n", "row 1: this is no object"),
        ("jobs.jsonl", '{"seed": [1, 2]}\n', r"row 1, column 'seed': \[1, 2\] is no single value"),
    ],
)
def test_a_table_that_cannot_be_read_says_where(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(TableError, match=message):
        read_table(table(tmp_path, text, name))


def test_another_encoding_is_told(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_bytes("prompt\nein Bär\n".encode("latin-1"))
    assert problems(path)[0].startswith("jobs.csv, byte 12: this is no UTF-8")
    for encoding in ("utf-16", "utf-16-le"):
        path.write_bytes("prompt\nein Bär\n".encode(encoding))
        assert "this is no UTF-8. Save the table as UTF-8" in problems(path)[0]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".lock",
        "a/b",
        "a\\b",
        "C:",
        "a\n",
        "a ",
        "a.",
        "manifest.jsonl",
        "Manifest.JSONL",
        "%x%",
        "a" * 101,
    ],
)
def test_no_name_leads_out_of_the_output_folder_or_to_its_own_files(
    tmp_path: Path, name: str
) -> None:
    path = table(tmp_path, json.dumps({"name": name, "seed": 1}), "jobs.jsonl")
    if name.strip() in ("", "a"):  # nothing given, or blanks around it
        assert read_table(path)[0].name in ("001", "a")
    else:
        assert "cannot name a folder" in problems(path)[0]


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["clip", "prompt", "a.b"]),
            st.text(st.characters(exclude_categories=["Cs", "Cc"])),
            min_size=1,
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_a_spreadsheet_writes_is_what_is_read(
    tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    path = tmp_path / "jobs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["name", "clip", "prompt", "a.b"])
        writer.writeheader()
        writer.writerows({"name": f"job {number}", **row} for number, row in enumerate(rows))
    stripped = [
        {column: text.strip() for column, text in row.items() if text.strip()} for row in rows
    ]
    assert [row.cells for row in read_table(path)] == stripped


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_a_name_that_passes_is_one_part_of_a_path(name: str) -> None:
    if NAME.fullmatch(name):
        assert Path(name).parts == (name,)
        assert not set(name) & set('/\\:*?"<>|%\n\r\t\0')

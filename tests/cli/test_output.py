"""With --json one document on standard output; without it, text for people."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from hansa.cli.output import Output, encode
from hansa.errors import ContributionError


def test_with_json_standard_output_holds_one_document_and_nothing_else(capsys):
    output = Output(json=True)
    output.say("reading")
    output.table(["party", "rows"], [("north", 84)])
    output.finish({"parties": 1})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"parties": 1}
    assert "reading" in err
    assert "north" in err


def test_without_json_the_document_is_not_printed(capsys):
    output = Output()
    output.say("reading [brackets] :smile: as they are")
    output.finish({"parties": 1})
    assert capsys.readouterr().out == "reading [brackets] :smile: as they are\n"


def test_a_long_line_is_not_broken_when_nobody_watches(capsys):
    Output().say("word " * 60)
    assert capsys.readouterr().out.count("\n") == 1


def test_a_table_aligns_numbers_to_the_right_and_leaves_an_unknown_cell_empty(capsys):
    Output().table(["医院", "accuracy", "done"], [("北", 0.93456, True), ("south", 0.5, None)], title="Worth")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].strip() == "Worth"
    assert any(line.endswith("0.9346   yes") for line in lines)
    assert any(line.endswith("0.5") for line in lines)


def test_an_error_says_where_what_and_the_way_out(capsys):
    error = ContributionError("a NaN", remedy="Lower the rate.", party="north", round=3, field="w")
    Output(json=True).fail(error)
    out, err = capsys.readouterr()
    assert err.splitlines() == ["error: party 'north', round 3, field 'w': a NaN", "help: Lower the rate."]
    assert json.loads(out)["error"] == {
        "kind": "ContributionError",
        "message": "a NaN",
        "remedy": "Lower the rate.",
        "party": "north",
        "round": 3,
        "field": "w",
    }


def test_arrays_paths_and_numbers_without_a_value_become_plain_json():
    document = {
        "a": np.arange(2),
        "b": np.float64("nan"),
        "c": [math.inf, 1.5],
        "d": Path("x"),
        2: ({3}, None, True, np.int64(4)),
    }
    assert json.loads(encode(document)) == {
        "a": [0, 1],
        "b": None,
        "c": [None, 1.5],
        "d": "x",
        "2": [[3], None, True, 4],
    }


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "北"), ("cp1252", "\\u5317")])
def test_names_are_readable_where_the_stream_can_show_them(monkeypatch, encoding, shown):
    class Stream:
        pass

    Stream.encoding = encoding
    monkeypatch.setattr(sys, "stdout", Stream())
    assert shown in encode({"party": "北"})


def test_a_command_or_a_token_is_not_broken_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    Output().say("hansa predict " + "x" * 60 + " --data rows.csv")
    assert capsys.readouterr().out.count("\n") == 1


def test_no_color_and_a_pipe_are_plain(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    output = Output()
    output.say("well", style="green")
    assert not output.live
    assert capsys.readouterr().out == "well\n"


def test_what_a_stranger_chose_moves_no_cursor(capsys):
    name = "\x1b[2Ja\x9bb\rc\u202ed"
    out = Output()
    out.say(name)
    out.table((name,), [(name,)])
    out.fail(ContributionError(name, remedy=name))
    shown = capsys.readouterr()
    assert not set("\x1b\x9b\r\u202e") & set(shown.out + shown.err)
    assert shown.out.count("[2Jab cd") == 3
    assert shown.err.count("[2Jab cd") == 2

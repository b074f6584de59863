"""Where statements end, as the prompt and the files of `lakehouse sql` see it, and what `--param` means."""

from pathlib import Path

import pytest

from lakehouse.cli import prompt, sql
from lakehouse.cli.statements import is_whole, split
from lakehouse.core.errors import Invalid


@pytest.mark.parametrize(
    ("text", "whole", "rest"),
    [
        ("", (), ""),
        ("SELECT 1", (), "SELECT 1"),
        ("SELECT 1;", ("SELECT 1",), ""),
        ("SELECT 1; SELECT 2 ;\n", ("SELECT 1", "SELECT 2"), ""),
        (";;SELECT 1;;", ("SELECT 1",), ""),
        ("SELECT ';'", (), "SELECT ';'"),
        ("SELECT 'it''s; fine';", ("SELECT 'it''s; fine'",), ""),
        ('SELECT ";" FROM t;', ('SELECT ";" FROM t',), ""),
        (r"SELECT E'\';' ;", (r"SELECT E'\';'",), ""),
        ("SELECT 1 -- no; end\n+ 1;", ("SELECT 1 -- no; end\n+ 1",), ""),
        ("SELECT 1 /* ; */;", ("SELECT 1 /* ; */",), ""),
        ("SELECT $$;$$;", ("SELECT $$;$$",), ""),
        ("SELECT $a$ $$;$$ $a$;", ("SELECT $a$ $$;$$ $a$",), ""),
        ("SELECT $1, $most;", ("SELECT $1, $most",), ""),
        ("-- only a comment;", (), ""),
        ("SELECT 1; -- done", ("SELECT 1",), ""),
        ("SELECT 'open;", (), "SELECT 'open;"),
        ("SELECT /* open;", (), "SELECT /* open;"),
        ("SELECT 1; SELECT $$open;", ("SELECT 1",), "SELECT $$open;"),
    ],
)
def test_a_semicolon_ends_a_statement_unless_it_is_quoted_or_commented(
    text: str, whole: tuple[str, ...], rest: str
) -> None:
    found = split(text)
    assert (found.whole, found.rest) == (whole, rest)
    assert is_whole(text) is (rest == "")


def test_cutting_a_long_statement_takes_linear_time() -> None:
    """Twice the text takes about twice the steps; quadratic backtracking would not come back."""
    assert split("SELECT '" + "''" * 200_000).rest
    assert split("SELECT '" + "x" * 1_000_000 + "';").whole


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([], None),
        (["most=50"], {"most": 50}),
        (["$most=50"], {"most": 50}),
        (["name=vim"], {"name": "vim"}),
        (["name=a=b"], {"name": "a=b"}),
        (['name="50"'], {"name": "50"}),
        (["q=[1, 0.5]", "flag=true", "none=null"], {"q": [1, 0.5], "flag": True, "none": None}),
        (["2=b", "1=a"], ["a", "b"]),
    ],
)
def test_parameters_are_json_where_they_can_be_and_by_place_where_they_are_numbered(
    given: list[str], meant: object
) -> None:
    assert sql.parameters(given) == meant


@pytest.mark.parametrize("given", [["most"], ["=1"], ["1=a", "3=c"], ["1=a", "name=b"]])
def test_parameters_that_are_a_riddle_are_refused(given: list[str]) -> None:
    with pytest.raises(Invalid, match="--param"):
        sql.parameters(given)


def test_history_lies_where_the_state_directory_is() -> None:
    assert prompt.history_file({"XDG_STATE_HOME": "/s"}) == Path("/s/lakehouse/sql_history")
    home = Path.home() / ".local" / "state" / "lakehouse" / "sql_history"
    assert prompt.history_file({}) == prompt.history_file({"XDG_STATE_HOME": "relative"}) == home


def test_names_are_quoted_only_where_they_must_be() -> None:
    assert [prompt.quoted(name) for name in ("products", "select", "two words", 'a"b', "größe")] == [
        "products",
        '"select"',
        '"two words"',
        '"a""b"',
        '"größe"',
    ]

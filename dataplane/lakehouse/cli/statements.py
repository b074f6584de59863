"""Where one SQL statement ends and the next begins, as far as a command line has to know.

A semicolon ends a statement unless it is inside quotes or a comment.  What this module does not do: parse; the
server does.
"""

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
      (?P<quoted> [eE]'(?:[^'\\]|\\.|'')*'  |  '(?:[^']|'')*'  |  "(?:[^"]|"")*" )
    | (?P<dollar> \$(?P<tag>[A-Za-z_]\w*)?\$ .*? \$(?(tag)(?P=tag))\$ )
    | (?P<comment> --[^\n]*(?:\n|$)  |  /\*.*?\*/ )
    | (?P<open> [eE]?'  |  "  |  \$(?:[A-Za-z_]\w*)?\$  |  /\* )
    | (?P<end> ; )
    | (?P<other> \$?\w+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Split:
    """Whole statements, without their semicolons, and what follows the last."""

    whole: tuple[str, ...]
    rest: str


def split(text: str) -> Split:
    """Cut `text` at its statements' ends; statements that are only comments or space are left out."""
    whole, start, at, said = [], 0, 0, False
    while at < len(text):
        token = _TOKEN.match(text, at)
        assert token is not None, "every character matches"
        if token["open"]:  # a quote or comment that nobody closed takes the rest
            said = True
            break
        at = token.end()
        if token["end"]:
            if said:
                whole.append(text[start : token.start()].strip())
            start, said = at, False
        elif not token["comment"] and not token.group().isspace():
            said = True
    return Split(tuple(whole), text[start:].strip() if said else "")


def is_whole(text: str) -> bool:
    """Whether nothing is missing: it ends in a semicolon that counts, or there is nothing in it."""
    return not split(text).rest

"""YAML as people write it: what is read, and where what is wrong stands."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakehouse.control import documents
from lakehouse.control.documents import Document
from lakehouse.core.errors import Invalid

HEAD = """\
apiVersion: lakehouse.agentview.dev/v1alpha1
kind: Dataset
metadata:
  name: x
"""


def one(text: str) -> Document:
    (document,) = documents.parse(HEAD + text, "f.yaml")
    return document


def refused(text: str) -> str:
    with pytest.raises(Invalid) as caught:
        documents.parse(text, "f.yaml")
    return caught.value.message


def test_a_file_may_hold_several_documents_and_empty_ones_do_not_count() -> None:
    text = f"# first\n---\n{HEAD}---\n---\n{HEAD.replace('x', 'y')}...\n"
    assert [document.name for document in documents.parse(text)] == ["x", "y"]
    assert documents.parse("") == documents.parse("# nothing\n") == ()


def test_json_is_read_too() -> None:
    (document,) = documents.parse(
        '{"apiVersion": "lakehouse.agentview.dev/v1alpha1", "kind": "Dataset", "metadata": {"name": "x"}, "n": [1]}'
    )
    assert document.body["n"] == [1]


def test_plain_words_stay_words_and_numbers_are_json_s() -> None:
    body = one(
        "v: [yes, on, No, 2026-01-01, true, False, ~, null, 0x10, 0o17, -3, 1_000, 1e3, .5, '7', 1:30]\n"
    ).body
    expected = [
        "yes",
        "on",
        "No",
        "2026-01-01",
        True,
        False,
        None,
        None,
        16,
        15,
        -3,
        1000,
        1000.0,
        0.5,
        "7",
        "1:30",
    ]
    assert body["v"] == expected


def test_every_field_knows_its_place() -> None:
    document = one("spec:\n  sources:\n    - uri: a\n      format: csv\n")
    assert document.where(("spec", "sources", 0, "format")) == "f.yaml:8:7"
    assert document.where(("spec", "sources", 0)) == "f.yaml:7:7"
    assert document.where(("spec", "sources", 0, "absent", "deeper")) == "f.yaml:7:7"
    assert document.where(()) == "f.yaml:1:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1\n", "f.yaml:2:1: a tab cannot indent; use spaces"),
        ("a: [1", "f.yaml:1:6: expected ',' or ']', but got '<stream end>'"),
        ("a: b: c", "f.yaml:1:5: mapping values are not allowed here"),
        ("a: 'x\n\n", "(while scanning a quoted scalar, which begins in line 1)"),
        ("- *x", "f.yaml:1:3: found undefined alias 'x'"),
        ("a\n\x00", "f.yaml:2:1: this character is not allowed in YAML"),
        (
            HEAD + "spec:\n  a: 1\n  b: 2\n  a: 3\n",
            "f.yaml:8:3: this key is given twice, first in line 6. key=`spec.a`",
        ),
        (HEAD + "spec: !!python/object:os.system x", "f.yaml:5:7: JSON has nothing like this"),
        (HEAD + "spec: .nan", "f.yaml:5:7: JSON has nothing like this. value=`.nan`"),
        (HEAD + "spec: -.inf", "f.yaml:5:7: JSON has nothing like this"),
        (HEAD + "spec: 1e999", "f.yaml:5:7: JSON has nothing like this"),
        (HEAD + "spec: {<<: {a: 1}}", "f.yaml:5:8: a key is plain text"),
        (HEAD + "spec: {[a]: 1}", "f.yaml:5:8: a key is plain text"),
        ("3", "f.yaml:1:1: a resource is a mapping"),
        ("kind: Dataset", "f.yaml:1:1: apiVersion is missing"),
        (
            HEAD.replace("v1alpha1", "v1"),
            "f.yaml:1:1: no such apiVersion; did you mean `lakehouse.agentview.dev/v1alpha1`?",
        ),
        (
            HEAD.replace("Dataset", "DataSet"),
            "f.yaml:2:1: no such kind; did you mean `Dataset`? kind=`DataSet`",
        ),
        (HEAD.replace("Dataset", "Pod"), "there are `Dataset`, `IndexSnapshot`, `VectorIndex`"),
        (HEAD.replace("name: x", "name: 3"), "f.yaml:3:1: metadata.name is missing"),
        (HEAD.replace("  name: x\n", ""), "f.yaml:3:1: metadata.name is missing"),
        ("[" * 5_000, "nested more than 64 levels deep"),
        (HEAD + "spec: " + "[" * 70 + "]" * 70, "more than 64 levels deep"),
        (HEAD + "spec: &a [*a]", "more than 64 levels deep"),
        ("---\n" * 1_001, "f.yaml: more than 1000 documents in one file"),
        ("x" * (documents.TEXT_CHARACTERS_MAX + 1), "f.yaml: more than 4194304 characters"),
        ("%YAML 3.0\n---\na: 1", "f.yaml:1:1: found incompatible YAML document"),
    ],
)
def test_what_cannot_be_meant_is_refused_where_it_stands(text: str, message: str) -> None:
    assert message in refused(text)


def test_a_small_file_cannot_stand_for_a_huge_one() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "100000 parts" in refused(HEAD + "\n".join(lines))


def test_the_same_resource_twice_names_both_places() -> None:
    twice = documents.parse(f"{HEAD}---\n{HEAD}", "f.yaml")
    with pytest.raises(Invalid, match=r"f\.yaml:9:3: this resource is written twice, first at f\.yaml:4:3"):
        documents.check_unique(twice)
    documents.check_unique(documents.parse(f"{HEAD}---\n{HEAD.replace('Dataset', 'IndexSnapshot')}"))
    apart = HEAD.replace("name: x", "name: x\n  namespace: other")
    documents.check_unique(documents.parse(f"{HEAD}---\n{apart}"))


@given(st.text(alphabet=string.printable + "äλ\u2028\x85\U0001f600", max_size=200))
def test_any_text_is_read_or_refused_with_its_file(text: str) -> None:
    for candidate in (text, HEAD + text, HEAD + "spec:\n  " + text):
        assert _read(candidate) is None or _read(candidate) == "f.yaml:"


def _read(text: str) -> str | None:
    """How the refusal begins, if it is one."""
    try:
        documents.parse(text, "f.yaml")
    except Invalid as error:
        return error.message[:7]
    return None

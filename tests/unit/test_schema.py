"""Schemas: types compared, changes told column by column, and what each policy allows."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakehouse.core import schema
from lakehouse.core.errors import Invalid
from lakehouse.core.schema import Field, Schema, SchemaConflict, SchemaPolicy

SCALARS = ["TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"]
SCALARS += [
    "FLOAT",
    "DOUBLE",
    "VARCHAR",
    "DATE",
    "TIMESTAMP",
    "BOOLEAN",
    "JSON",
    "UUID",
    "DECIMAL(10,2)",
    '"NULL"',
]


def of(*columns: str) -> Schema:
    """A schema from `name TYPE` texts."""
    return Schema(tuple(Field(name, type_) for name, _, type_ in (each.partition(" ") for each in columns)))


def types() -> st.SearchStrategy[str]:
    return st.recursive(
        st.sampled_from(SCALARS),
        lambda inner: st.one_of(
            inner.map(lambda each: f"{each}[]"),
            inner.map(lambda each: f"{each}[3]"),
            st.tuples(inner, inner).map(lambda two: f"MAP({two[0]}, {two[1]})"),
            st.dictionaries(st.sampled_from(["a", 'b"c', "d e", "("]), inner, min_size=1).map(
                lambda parts: f"STRUCT({', '.join(_part(name, each) for name, each in parts.items())})"
            ),
        ),
        max_leaves=5,
    )


def _part(name: str, type_: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}" {type_}'


@given(types())
def test_a_type_reads_back_as_written(text: str) -> None:
    assert str(schema.parsed(text)) == text
    assert schema.holds(text, text)
    assert schema.stored(schema.stored(text)) == schema.stored(text)


@given(types(), types())
def test_a_common_type_holds_both_and_does_not_depend_on_order(one: str, other: str) -> None:
    found = schema.common(one, other)
    if found is not None:
        assert schema.holds(found, one)
        assert schema.holds(found, other)
    if "STRUCT" not in one:  # whose parts come in the order of the first
        assert schema.common(other, one) == found


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("INTEGER", "BIGINT", "BIGINT"),
        ("UTINYINT", "TINYINT", "SMALLINT"),
        ("UBIGINT", "BIGINT", "DECIMAL(20,0)"),
        ("INTEGER", "DOUBLE", "DOUBLE"),
        ("INTEGER", "FLOAT", "DOUBLE"),
        ("SMALLINT", "FLOAT", "FLOAT"),
        ("BIGINT", "DOUBLE", None),
        ("FLOAT", "DOUBLE", "DOUBLE"),
        ("DATE", "TIMESTAMP", "TIMESTAMP"),
        ("BIGINT", "VARCHAR", None),
        ("INTEGER", "DECIMAL(10,2)", "DECIMAL(12,2)"),
        ("UBIGINT", "DECIMAL(38,30)", None),
        ("DECIMAL(10,2)", "DECIMAL(5,4)", "DECIMAL(12,4)"),
        ("FLOAT[3]", "FLOAT[]", "FLOAT[]"),
        ("FLOAT[3]", "FLOAT[4]", "FLOAT[]"),
        ('"NULL"', "DATE", "DATE"),
        ("STRUCT(a INTEGER)", "STRUCT(b DATE)", 'STRUCT("a" INTEGER, "b" DATE)'),
        ("STRUCT(a INTEGER)", "STRUCT(a DATE)", None),
        ("MAP(VARCHAR, INTEGER)", "MAP(VARCHAR, BIGINT)", "MAP(VARCHAR, BIGINT)"),
    ],
)
def test_the_least_type_that_keeps_every_value(one: str, other: str, expected: str | None) -> None:
    assert schema.common(one, other) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HUGEINT", "DECIMAL(38,0)"),
        ("TIMESTAMP_S[]", "TIMESTAMP[]"),
        ("ENUM('a(', 'b''c')", "VARCHAR"),
        ("STRUCT(x HUGEINT, y INTEGER[2])", 'STRUCT("x" DECIMAL(38,0), "y" INTEGER[2])'),
        ("TIMESTAMP  WITH TIME ZONE", "TIMESTAMP WITH TIME ZONE"),
    ],
)
def test_a_type_as_parquet_keeps_it(text: str, expected: str) -> None:
    assert schema.stored(text) == expected


@pytest.mark.parametrize(
    "text", ["", "STRUCT(a", "INTEGER[", "INTEGER[x]", "DECIMAL(a,b)", "INTEGER)", '"x', "[]" * 9]
)
def test_what_is_no_type_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        schema.parsed(text)


def test_types_nested_too_deep_are_refused() -> None:
    with pytest.raises(Invalid, match="deep"):
        schema.parsed("STRUCT(a " * 100 + "INTEGER" + ")" * 100)


OLD = of("id BIGINT", "name VARCHAR", "price DOUBLE")


def test_a_difference_is_told_column_by_column() -> None:
    new = of("price VARCHAR", "ID BIGINT", "more DATE")
    changes = schema.difference(OLD, new)
    assert [str(change) for change in changes] == [
        "- name VARCHAR",
        "~ price DOUBLE → VARCHAR",
        "+ more DATE",
    ]
    assert changes[1].to_json() == {"change": "type", "column": "price", "old": "DOUBLE", "new": "VARCHAR"}


def test_order_case_and_narrower_types_are_no_difference() -> None:
    assert schema.difference(OLD, of("PRICE FLOAT", "name VARCHAR", "id INTEGER")) == ()


CHANGES = {
    "same": (of("name VARCHAR", "id INTEGER", "price DOUBLE"), OLD),
    "added": (
        of("id BIGINT", "name VARCHAR", "price DOUBLE", "x DATE"),
        of("id BIGINT", "name VARCHAR", "price DOUBLE", "x DATE"),
    ),
    "removed": (of("id BIGINT", "name VARCHAR"), of("id BIGINT", "name VARCHAR")),
    "retyped": (
        of("id VARCHAR", "name VARCHAR", "price DOUBLE"),
        of("id VARCHAR", "name VARCHAR", "price DOUBLE"),
    ),
}
ALLOWED = {
    SchemaPolicy.STRICT: {"same"},
    SchemaPolicy.ADD_ONLY: {"same", "added"},
    SchemaPolicy.ANY: set(CHANGES),
}


@pytest.mark.parametrize("policy", SchemaPolicy)
@pytest.mark.parametrize("change", CHANGES)
def test_a_policy_allows_what_it_says(policy: SchemaPolicy, change: str) -> None:
    new, expected = CHANGES[change]
    if change in ALLOWED[policy]:
        assert schema.merged(OLD, new, policy) == expected
        return
    with pytest.raises(SchemaConflict) as refused:
        schema.merged(OLD, new, policy)
    assert schema.shown(refused.value.changes) in refused.value.message
    assert policy.value in refused.value.message


def test_a_column_that_becomes_nullable_is_a_change() -> None:
    old = Schema((Field("id", "BIGINT", nullable=False),))
    assert [str(each) for each in schema.difference(old, of("id BIGINT"))] == [
        "~ id BIGINT NOT NULL → BIGINT"
    ]
    assert schema.difference(of("id BIGINT"), old) == ()


def test_schemas_unite_to_what_holds_all() -> None:
    whole = schema.united([of("a INTEGER", "b DATE"), of("c VARCHAR", "A BIGINT"), of("a DOUBLE")])
    assert whole == of("a DOUBLE", "b DATE", "c VARCHAR")
    assert schema.united([of("a STRUCT(x INTEGER)"), of("a VARCHAR")]) == of("a JSON")
    assert schema.united([]) == Schema(())


def test_fingerprints_depend_on_names_types_and_order() -> None:
    canonical = b'[["id","BIGINT",true]]'
    assert of("id BIGINT").fingerprint == hashlib.sha256(canonical).hexdigest()
    different = {of("a X", "b X").fingerprint, of("b X", "a X").fingerprint, of("a X", "b Y").fingerprint}
    assert len(different) == 3
    assert Schema.from_json(OLD.to_json()) == OLD


@pytest.mark.parametrize(
    "bad", [Schema(()), of("a X", "A X"), Schema(tuple(Field(str(n), "X") for n in range(10_001)))]
)
def test_a_schema_no_dataset_can_have_is_refused(bad: Schema) -> None:
    with pytest.raises(Invalid):
        schema.merged(None, bad, SchemaPolicy.ANY)

"""A view's name: as SQL writes it, as the catalogue holds it, as results show it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matview_operator.domain.errors import InvalidName
from matview_operator.domain.view import IDENTIFIER_BYTES, ViewName

identifiers = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1).filter(
    lambda text: len(text.encode()) <= IDENTIFIER_BYTES
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mv", ViewName("public", "mv")),
        ("MV_Daily", ViewName("public", "mv_daily")),
        ('"MV_Daily"', ViewName("public", "MV_Daily")),
        ("Finance.MV", ViewName("finance", "mv")),
        ('finance."a.b"', ViewName("finance", "a.b")),
        ('"say ""hi"""."x;y"', ViewName('say "hi"', "x;y")),
        (" finance . mv ", ViewName("finance", "mv")),
        # PostgreSQL folds ASCII only.
        ("ÄRGER", ViewName("public", "Ärger")),
        ("größe$1", ViewName("public", "größe$1")),
    ],
)
def test_sql_names_fold_and_quote_as_in_postgresql(text: str, name: ViewName) -> None:
    assert ViewName.from_sql(text) == name


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "a.", ".a", "a.b.c", "1a", "a-b", "a b", '"a', '""', 'a."b', "a;drop table b", "a--", "a\0", "'a'"],
)
def test_what_is_not_one_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        ViewName.from_sql(text)


def test_a_url_in_a_names_place_is_not_repeated() -> None:
    with pytest.raises(InvalidName, match=r"^A URL is not a view name"):
        ViewName.from_sql("postgresql://user:secret")


@given(identifiers, identifiers)
def test_quoted_names_are_literal(schema: str, name: str) -> None:
    def quote(part: str) -> str:
        return '"' + part.replace('"', '""') + '"'

    assert ViewName.from_sql(f"{quote(schema)}.{quote(name)}") == ViewName(schema, name)


@given(st.text(max_size=80))
def test_any_text_gives_a_name_or_invalid_name(text: str) -> None:
    for read in (ViewName.from_sql, ViewName.from_raw):
        try:
            name = read(text)
        except InvalidName:
            continue
        assert len(name.name.encode()) <= IDENTIFIER_BYTES


@given(identifiers.filter(lambda schema: "." not in schema and schema != "public"), identifiers)
def test_raw_names_are_read_as_they_are_written(schema: str, name: str) -> None:
    view = ViewName(schema, name)
    assert ViewName.from_raw(str(view)) == view
    assert ViewName.from_raw(f"public.{name}") == ViewName("public", name)


def test_63_bytes_are_a_name_and_64_are_not() -> None:
    assert ViewName("public", "a" * 63).name == "a" * 63
    assert ViewName("public", "ä" * 31).name == "ä" * 31
    for long in ("a" * 64, "ä" * 32, "a" * 300):
        with pytest.raises(InvalidName, match="PostgreSQL keeps 63"):
            ViewName("public", long)
        with pytest.raises(InvalidName, match="PostgreSQL keeps 63"):
            ViewName(long, "a")


def test_half_a_surrogate_pair_is_no_name() -> None:
    with pytest.raises(InvalidName, match="UTF-8"):
        ViewName.from_raw("\udc80")

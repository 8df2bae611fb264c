"""Strings that no tenant should be able to hurt anybody with, and policies made of them; for hypothesis."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from tests.database import quoted

_WORDS = """
" "" ' '' \\ \\' \\" $$ $1 $tag$ ; -- /* */ % %I %s {} {0} . .. , ( ) [ ] = :: :x @ # ` ~ U&" E' NULL \\N ../ x A a
file:// pg_temp pg_catalog public information_schema matview_ops refresh_run select concurrently drop table canary
refresh materialized view with no data nothing GLOBAL app.execution_context role session_authorization ${jndi:x}
\u200b \u200d \u202e \ufeff \u0430 \u0131 \u00df \u00e9 e\u0301 \ufb01 \u8868 \U0001f642 \U0010ffff \x01 \x1b[2J \x7f
"""
_BLANKS = [" ", "  ", "\n", "\r", "\t", "\x00", "\n\t", "\x85", "\u00a0", "\u2028"]
_SENTENCES = ["; drop table canary; --", "'; drop table canary; --", "--\n", "a b"]
FRAGMENTS = [*_WORDS.split(), *_BLANKS, *_SENTENCES]

texts = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join) | st.text(max_size=70)
"""What a field may hold that takes a string; longer than it may be, now and then."""
_LONG = ["n" * 63, "n" * 64, "ü" * 31, "ü" * 32, "表" * 21, "🙂" * 15 + "abc", "MV", "mv", "mv "]
names = texts | st.sampled_from(_LONG)

NEAR: list[Callable[[str], str]] = [
    str.swapcase,
    str.strip,
    quoted,
    lambda name: name + " ",
    lambda name: " " + name,
    lambda name: name[:-1],
    lambda name: name + "x",
    lambda name: name.replace('"', '""'),
    lambda name: name.replace("\\", "\\\\"),
    lambda name: name.replace("a", "\u0430"),
    lambda name: unicodedata.normalize("NFD", name),
    lambda name: unicodedata.normalize("NFKC", name),
    lambda name: f"public.{name}",
]
"""What another view's name may differ by from a view's that exists."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A view that a policy names."""

    schema: str
    name: str
    exists: bool = False
    """Whether it is made before the policy is run, if PostgreSQL can have it."""
    known: int | None = None
    """Instead of schema and name: one that was made before, by its number."""
    near: int | None = None
    """And with its name changed like this."""
    guard: dict[str, Any] | None = None
    depends_on: list[dict[str, Any]] | None = None


def _sometimes(usual: Any, hostile: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    # Not by one_of: hypothesis, looking for what is new, would take the hostile one most of the time.
    return st.tuples(st.integers(0, 999), hostile).map(lambda drawn: drawn[1] if drawn[0] % 10 == 1 else usual)


numbers = st.integers(0, 10_000)
guards = st.none() | st.fixed_dictionaries(
    {"minRows": st.just(1)}, optional={"maxRowLossPercent": st.just(50), "keepTenants": st.just("id") | names}
)
reads = _sometimes(
    None, st.lists(st.fixed_dictionaries({"name": names}, optional={"schema": names}), min_size=1, max_size=2)
)
granted = st.one_of(
    st.builds(Wish, _sometimes("public", names), names, exists=st.just(True), guard=guards, depends_on=reads),
    st.builds(Wish, st.just(""), st.just(""), known=numbers, guard=guards),
)
"""Of a view that exists, if PostgreSQL can have it."""
wishes = st.one_of(
    granted,
    st.builds(Wish, st.just(""), st.just(""), known=numbers, near=st.integers(0, len(NEAR) - 1), guard=guards),
    st.builds(Wish, _sometimes("public", names), names, guard=guards),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """All that a tenant may write: a policy, its annotation, a database and its Secret."""

    wishes: list[Wish]
    policy: dict[str, Any]
    """The spec but for its views."""
    token: str | None
    database: dict[str, Any]
    secret: dict[str, str]
    """What replaces the values that are right."""


def _spec(required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> Any:
    return st.fixed_dictionaries(required, optional=optional)


zones = st.sampled_from(["Europe/Berlin", "../../etc/passwd", "/etc/localtime", "UTC"]) | texts
schedules = _sometimes(
    {"everySeconds": 30},
    st.fixed_dictionaries(
        {"cron": st.sampled_from(["* * * * *", "61 * * * *", "0 0 31 2 *", "*/0 * * * *", "1-0 * * * *"]) | texts},
        optional={"timeZone": zones},
    ),
)


windows = _sometimes(
    [],
    st.lists(
        st.fixed_dictionaries(
            {"kind": st.just("Allow"), "cron": st.just("* * * * *") | texts, "durationSeconds": st.just(60)},
            optional={"timeZone": zones},
        ),
        min_size=1,
        max_size=2,
    ),
)
"""Open, or none that a database may have."""


def _attacks(
    wished: st.SearchStrategy[list[Wish]], *, required: dict[str, Any], **optional: st.SearchStrategy[Any]
) -> st.SearchStrategy[Attack]:
    return st.builds(
        Attack,
        wishes=wished,
        policy=_spec(
            {
                "databaseRef": _sometimes({"name": "db"}, st.fixed_dictionaries({"name": texts})),
                "schedule": schedules,
                **required,
            },
            tenantId=texts | st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=63),
            isolation=st.sampled_from(["Shared", "Shared", "Tenant"]),
            tenantSetting=_sometimes("app.current_tenant_id", texts | st.just("a.b") | st.just("plpgsql.x")),
            **optional,
        ),
        token=st.none() | texts | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
        database=_spec(
            {"secretRef": _sometimes({"name": "db-app"}, st.fixed_dictionaries({"name": texts}))},
            searchPath=_sometimes([], st.lists(names, max_size=3)),
            windows=windows,
            database=_sometimes(None, texts),
        ),
        secret=_sometimes({}, st.dictionaries(st.sampled_from(["dbname", "username", "password", "port"]), texts)),
    )


attacks = _attacks(
    st.lists(wishes, min_size=1, max_size=3), required={}, concurrently=st.sampled_from(["IfPossible", "Never"])
)
# A group is refused whole if one of its views is: so most are there, and all are different.
group_attacks = _attacks(
    st.one_of(
        [
            st.lists(
                wished, min_size=count, max_size=count, unique_by=lambda wish: (wish.schema, wish.name, wish.known)
            )
            for wished in (granted, granted, wishes)
            for count in (1, 2, 3)
        ]
    ),
    required={"consistency": st.just("Group")},
    concurrently=_sometimes("IfPossible", st.just("Never")),
)

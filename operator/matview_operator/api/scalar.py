"""The scalar types of the custom resources: every string, number and time has bounds, or CEL's cost estimate
fails.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, WithJsonSchema

MESSAGE_CHARACTERS = 1024
CONDITION_MESSAGE_CHARACTERS = 4096

OBJECT_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
CRON = r"[ \t]*([0-9A-Za-z*/,#-]+[ \t]+){4}[0-9A-Za-z*/,#-]+[ \t]*"
TIME_ZONE = "[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}"
SETTING = "[A-Za-z_][A-Za-z0-9_$]*([.][A-Za-z_][A-Za-z0-9_$]*)+"
_ELLIPSIS = "…"


T = TypeVar("T")


@lru_cache(maxsize=1024)
def _one_of(part: T) -> T:
    return part


OneOf = Annotated[T, AfterValidator(_one_of)]
"""A part of which thousands of policies have equal ones: they share one in memory."""


def rule(expression: str, message: str) -> dict[str, str]:
    """Return one CEL rule; `self` is the value that carries it."""
    return {"rule": expression, "message": message}


def rules(*each: dict[str, str]) -> dict[str, Any]:
    """Return the extension that hangs CEL rules on a field or model."""
    return {"x-kubernetes-validations": list(each)}


def _object_name(value: str) -> str:
    # Here and not in the checks of the whole spec: no request for another path may ever be built from it.
    if not re.fullmatch(OBJECT_NAME, value):
        raise ValueError("must be the name of an object: lower-case letters, digits, '-' and '.', as in analytics-app")
    return value


def _cut(characters: int) -> BeforeValidator:
    """Cut what is longer: the API server would refuse the whole status for one long message."""

    def cut(value: Any) -> Any:
        if isinstance(value, str) and len(value) > characters:
            return value[: characters - 1] + _ELLIPSIS
        return value

    return BeforeValidator(cut)


ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253, json_schema_extra={"pattern": f"^{OBJECT_NAME}$"}),
    AfterValidator(_object_name),
]
"""A DNS subdomain, as Kubernetes wants the names of Secrets and of custom resources."""

SecretKey = Annotated[
    str,
    Field(min_length=1, max_length=253, json_schema_extra={"pattern": r"^[-._a-zA-Z0-9]+$"}),
]
"""A key of a Secret. Only looked up in what was read, so that nothing depends on its pattern."""

_IDENTIFIER_RULES = (
    rule("bytes(self).size() <= 63", "a PostgreSQL name has at most 63 bytes; write it as the catalogue has it"),
    rule("!self.contains('\\x00')", "a PostgreSQL name cannot hold a NUL character"),
)

Identifier = Annotated[str, Field(min_length=1, max_length=63, json_schema_extra=rules(*_IDENTIFIER_RULES))]
"""A PostgreSQL name, literal as in the catalogue. Bytes are checked again by the operator."""

SearchPathSchema = Annotated[
    str,
    Field(
        min_length=1,
        max_length=63,
        json_schema_extra=rules(
            *_IDENTIFIER_RULES,
            rule(
                "!self.startsWith('pg_') && self != '$user'",
                "searchPath takes schemas of yours: pg_catalog comes first and pg_temp last anyway, and $user is none",
            ),
        ),
    ),
]
"""A schema that a search path may name, literal as in the catalogue."""

Cron = Annotated[
    str,
    Field(
        min_length=9,
        max_length=100,
        json_schema_extra=rules(
            rule(
                f"self.matches('^{CRON}$')",
                "cron takes five fields: minute hour day-of-month month day-of-week, as in */5 * * * *",
            )
        ),
    ),
]
TimeZone = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        json_schema_extra=rules(
            rule(
                f"self.matches('^{TIME_ZONE}$')",
                "timeZone takes a name of the IANA time zone database, as in Etc/UTC or Europe/Berlin",
            )
        ),
    ),
]
TenantId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=63,
        json_schema_extra=rules(
            rule("self != 'GLOBAL'", "tenantId must not be GLOBAL, which stands for no tenant; leave it out"),
            rule(r"self.matches('^[^\\p{C}]+$')", "tenantId takes 1 to 63 printable characters"),
        ),
    ),
]
TenantSetting = Annotated[
    str,
    Field(
        min_length=3,
        max_length=128,
        json_schema_extra=rules(
            rule(
                f"self.matches('^{SETTING}$')",
                "tenantSetting takes the name of a setting with a dot, as in app.current_tenant_id",
            ),
            rule(
                "self.lowerAscii() != 'app.execution_context'",
                "tenantSetting must not be app.execution_context, which the operator sets itself",
            ),
        ),
    ),
]


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be an instant of the years 1 to 9999 in UTC") from None


Time = OneOf[
    Annotated[
        AwareDatetime,
        AfterValidator(_utc),
        WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 40}),
    ]
]
"""An instant, RFC 3339."""

Reason = OneOf[
    Annotated[
        str,
        Field(min_length=1, max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"),
    ]
]
"""A word in CamelCase. No closed set in the schema, so that an older CRD does not refuse a newer operator's
word."""

Message = Annotated[str, _cut(MESSAGE_CHARACTERS), Field(max_length=MESSAGE_CHARACTERS)]
ConditionMessage = OneOf[
    Annotated[str, _cut(CONDITION_MESSAGE_CHARACTERS), Field(max_length=CONDITION_MESSAGE_CHARACTERS)]
]
Token = Annotated[str, Field(max_length=128)]
"""A request's token or a correlation id."""

Count = Annotated[int, Field(ge=0, le=1_000_000_000_000_000)]
"""Rows, bytes, milliseconds, slots. The cap is one that a float64, which the schema's bounds are, holds
exactly."""

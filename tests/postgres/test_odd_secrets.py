"""FAULTS 15: whatever a Secret's values are, the run ends with a reason that names the key and never the value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandbox.password import MARK
from tests.database import MV_OPERATOR
from tests.refreshes import a_run
from tests.unit.ports import MemorySecrets

from matview_operator import RefreshOutcome
from matview_operator.adapters.postgres.refresher import Refresher
from matview_operator.api.database import MatviewDatabaseSpec
from matview_operator.api.outcome import RefreshReason
from matview_operator.domain.destination import Destinations
from matview_operator.domain.errors import Problem
from matview_operator.domain.text import is_printable
from matview_operator.engine.ports import Key
from matview_operator.engine.targets import resolve

if TYPE_CHECKING:
    from tests.database import Database

LOOPBACK = Destinations.read(["127.0.0.0/8"])
KEY = Key("tenant", "db")
SPEC = MatviewDatabaseSpec.model_validate({"secretRef": {"name": "db"}, "sslMode": "disable"})
MEGABYTE = "x" * 1_048_576
ODD = {
    "a megabyte": MEGABYTE,
    "a NUL": "x\0y",
    "a line break at its end": "x\r\n",
    "nothing": "",
    "beyond ascii": "Größe表🙂\u00a0\u0301",
    "an option": "x' options='-c search_path=evil",
}


@pytest.mark.parametrize("databases", [18], indirect=True)
@pytest.mark.parametrize("key", ["host", "port", "dbname", "username", "password", "uri"])
async def test_fault_15_an_odd_value_in_a_secret_ends_in_a_reason_without_the_value(
    database: Database, key: str
) -> None:
    view = await database.make_view()
    right = {
        "host": "127.0.0.1",
        "port": str(database.server.port),
        "dbname": database.name,
        "username": MV_OPERATOR,
        "password": database.passwords[MV_OPERATOR],
    }
    for what, value in ODD.items():
        data = {"uri": f"postgresql://u:{MARK}@{value}"} if key == "uri" else {**right, key: value}
        if key == "password":
            data["password"] = MARK + value
        try:
            target = await resolve(SPEC, KEY, MemorySecrets({Key("tenant", "db"): data}), LOOPBACK)
        except Problem as problem:
            reason: RefreshReason | None = problem.reason
            message = problem.message
        else:
            result = await Refresher().refresh(target=target, run=a_run(view, timeout_seconds=3))
            if (key, what) == ("port", "nothing"):
                continue  # the usual one, where something else may listen
            assert result.outcome is RefreshOutcome.FAILED, what
            assert result.error_type is not RefreshReason.INTERNAL_ERROR, what
            reason, message = result.error_type, result.error_message or ""
        assert reason, what
        assert message, what
        assert MARK not in message, what
        assert len(message) <= 1024, what
        assert is_printable(message), what
    again = await resolve(SPEC, KEY, MemorySecrets({Key("tenant", "db"): right}), LOOPBACK)
    assert (await Refresher().refresh(target=again, run=a_run(view))).outcome is RefreshOutcome.SUCCESS

"""The objects of a history, drawn from its seed: databases of a few servers, policies of a few tenants."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from tests.simulation.windows import OPENING
from tests.unit.memory_api import Body

from matview_operator.engine.ports import Key

NAMESPACES = ("red", "blue")
SERVERS = ("pg0", "pg1", "pg2")
VIEWS = ("a", "b", "c", "d")
READS = {"c": "a", "d": "c"}
"""What a policy may say of a view: that it reads another one."""

_PERIODS = (20, 30, 45, 60, 60, 90, 120, 300, 600)
_CRONS = ("* * * * *", "*/2 * * * *", "*/3 * * * *", "1-59/5 * * * *", "7 * * * *")


class Draw:
    """Draws objects. What is drawn is valid, but for what only the whole cluster makes a mistake of."""

    def __init__(self, random: Random, *, slots: float, seconds: float) -> None:
        """`slots` is about how many each policy is to have in the history's `seconds`."""
        self._random = random
        self._shortest = seconds / slots

    def database(self, server: str) -> Body:
        """A MatviewDatabase's spec; its Secret has the server's name."""
        pick = self._random.choice
        limits = {
            "maxConcurrentRefreshes": pick((1, 1, 2, 2, 4)),
            "timeoutSeconds": pick((20, 60, 120)),
            "minIntervalSeconds": pick((0, 0, 10, 10, 60, 150)),
        }
        spec: dict[str, Any] = {"secretRef": {"name": server}, "sslMode": "disable", "limits": limits}
        # Shorter than the default: each history is quiet at its end until all have been looked at again.
        spec["inventory"] = {"checkIntervalSeconds": 120}
        if self._random.random() < 0.15:
            kind, seconds = pick((("Deny", 60), ("Deny", 200), ("Allow", 420), ("Allow", 240)))
            spec["windows"] = [{"kind": kind, "cron": OPENING, "durationSeconds": seconds}]
        return spec

    def schedule(self) -> Body:
        """A cron expression or a period, rarely due more often than the history can afford."""
        random = self._random
        if random.random() < 0.3:
            crons = _CRONS if self._shortest <= 60 else _CRONS[2:]
            return {"cron": random.choice(crons), "timeZone": random.choice(("Etc/UTC", "Asia/Kolkata"))}
        if random.random() < 0.05:
            return {"everySeconds": 20}  # due again while it still runs
        if random.random() < 0.1:
            return {
                "maxStalenessSeconds": random.choice(
                    [each for each in (60, 120, 300) if each >= self._shortest] or [600]
                )
            }
        return {"everySeconds": self._not_too_often(_PERIODS)}

    def _not_too_often(self, seconds: Sequence[int]) -> int:
        return self._random.choice([each for each in seconds if each >= self._shortest] or [600])

    def policy(self, databases: list[str]) -> Body:
        """A MatviewRefreshPolicy's spec."""
        random = self._random
        views = random.sample(VIEWS, random.choice((1, 1, 2, 3, 4)))
        spec: dict[str, Any] = {
            "databaseRef": {"name": random.choice(databases)},
            "views": [{"name": view} for view in views],
            "schedule": self.schedule(),
            "startingDeadlineSeconds": random.choice((5, 20, 60, 300, 3600)),
            "historyLimit": 50,
        }
        if "maxStalenessSeconds" not in spec["schedule"] and random.random() < 0.15:
            spec["jitterSeconds"] = random.choice((5, 15, 20))
        if random.random() < 0.3:
            spec["tenantId"] = random.choice(("t1", "t2"))
            if random.random() < 0.5:
                # Mostly views of its own; else it meets others', which must be seen.
                own = f"{spec['tenantId']}_" if random.random() < 0.8 else ""
                spec |= {"isolation": "Tenant", "views": [{"name": own + view} for view in views]}
        if len(views) > 1 and random.random() < 0.3:
            spec["consistency"] = "Group"
        for view in spec["views"]:
            if view["name"] in READS and random.random() < 0.4:
                view["dependsOn"] = [{"name": READS[view["name"]]}]
        return spec


def secret_of(server: str) -> dict[str, str]:
    """The connection to a server."""
    return {"host": server, "port": "5432", "dbname": "app", "username": "mv", "password": "p"}


def place(namespace: str, name: str) -> Key:
    """Where an object is."""
    return Key(namespace, name)

"""One history: users change their minds, processes die, servers fail, and in the end all is well again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from tests.simulation.accounts import Accounts
from tests.simulation.cluster import Cluster
from tests.simulation.ground import Ground
from tests.simulation.judge import Judge
from tests.simulation.lease import SharedLease
from tests.simulation.objects import NAMESPACES, SERVERS, Draw, place, secret_of
from tests.simulation.process import Process
from tests.simulation.seen import DATABASE, POLICY
from tests.simulation.server import Server
from tests.simulation.verdict import Verdict

from matview_operator.domain.shard import Shard
from matview_operator.engine.ports import Key

_LOOK_SECONDS = 60.0
_QUIET_SECONDS, _QUIET_RUNS = 150.0, 11
"""Longer than the periods of preflights and lists, than any pause that a fault leaves behind, and than so many runs."""


class History:
    """Everything that happens is drawn before, or at its instant, from the seed."""

    def __init__(self, ground: Ground, *, seed: int) -> None:
        self.ground = ground
        self.cluster = Cluster(ground)
        self.accounts = Accounts(ground)
        self.processes: list[Process] = []
        self.judge = Judge(ground, accounts=self.accounts, objects=self.cluster.api.objects, processes=self.processes)
        self.cluster.written = self.accounts.stored
        draw = self._random = Random(seed)  # noqa: S311 - to be the same each time
        self.seconds = draw.choice((120, 180, 240, 240, 300, 300, 400, 600))
        self._draw = Draw(draw, slots=draw.choice((2, 2, 3, 3, 6)), seconds=self.seconds)
        self._trouble = draw.choice((0.0, 0.0, 0.02, 0.1, 0.3))
        self._places = draw.choice((2, 3, 4, 32))
        self.servers = {
            host: Server(
                ground=ground, host=host, has_ledger=draw.random() < 0.5, seconds=draw.choice((0.1, 1, 3, 10, 30)),
                trouble=self._trouble,
            )
            for host in SERVERS[: draw.randrange(1, 4)]
        }  # fmt: skip
        # Two stand by for each other; one, for itself.
        self._lease = SharedLease(self.cluster) if draw.random() < 0.3 else None
        count = 2 if self._lease is None and draw.random() < 0.2 else 1
        self._shards = [Shard(index=index, count=count) for index in range(count)]
        self._started = 0
        self.processes += [
            self._new_process(shard) for shard in self._shards for _ in range(1 if self._lease is None else 2)
        ]
        self._policies = [f"p{number}" for number in range(draw.choice((1, 2, 2, 3, 3, 4, 5)))]
        self._databases = [f"db{number}" for number in range(draw.randrange(1, 3))]
        self._namespaces = NAMESPACES[: draw.choice((1, 1, 2))]
        self._tokens = 0

    async def run(self) -> None:
        """Live through it, and judge the end."""
        draw, loop = self._random, self.ground.loop
        self.cluster.trouble = draw.choice((0.0, 0.0, 0.01, 0.05))
        self.cluster.watch_trouble = draw.choice((0.0, 0.0, 0.05, 0.2))
        for namespace in self._namespaces:
            for name in self._databases:
                self._put_database(place(namespace, name))
            for name in self._policies:
                if draw.random() < 0.8:
                    self._put_policy(place(namespace, name))
        for process in self.processes:
            process.start()
        acts: list[Callable[[], None]] = [
            *[self._user_acts] * draw.randrange(8),
            *draw.choices(
                [
                    self._kill, self._kill, self._terminate, self._pause, self._lose_api, self._fail_server,
                    self._fail_server, self._hang_server, self._take_lock, self._set_clock, self._touch,
                ],
                k=draw.randrange(8),
            ),
        ]  # fmt: skip
        for act in acts:
            loop.after(self.seconds * draw.random(), act)
        while self.ground.now < self.seconds:
            await asyncio.sleep(_LOOK_SECONDS)
            self._look()
        self._heal()
        await asyncio.sleep(max(_QUIET_SECONDS, _QUIET_RUNS * max(server.seconds for server in self.servers.values())))
        self._look()
        self._judge_end()

    def _judge_end(self) -> None:
        for shard in self._shards:
            leaders = [each for each in self.processes if each.alive and each.leads() and each.shard == shard]
            if len(leaders) != 1:
                self.ground.violate(f"{len(leaders)} processes lead {shard}")
            for process in leaders:
                Verdict(self.ground, cluster=self.cluster, process=process, accounts=self.accounts).pronounce()

    def _new_process(self, shard: Shard) -> Process:
        self._started += 1
        return Process(
            self._started,
            ground=self.ground,
            cluster=self.cluster,
            servers=self.servers,
            observer=self.judge,
            places=self._places,
            lease=self._lease,
            shard=shard,
            lost=self._restart_later,
        )

    def _look(self) -> None:
        for process in self.processes:
            if process.alive and not process.life.paused and process.leads():
                self.judge.look(process)

    def _heal(self) -> None:
        self.ground.tell("all is well from now on")
        for server in self.servers.values():
            server.heal()
            for view in [view for view, holder in server.locks.items() if isinstance(holder, str)]:
                del server.locks[view]
        self._find_api()
        self.cluster.trouble = self.cluster.watch_trouble = 0.0
        for process in [*self.processes]:
            self._go_on(process)
        self._restart()

    # What users do.

    def _user_acts(self) -> None:
        draw = self._random
        where = place(draw.choice(self._namespaces), draw.choice(self._policies))
        database = place(where.namespace, draw.choice(self._databases))
        act = draw.choice(
            (
                self._put_policy, self._put_policy, self._delete_policy, self._delete_policy, self._suspend_policy,
                self._request, self._request, self._request, self._put_database, self._suspend_database,
                self._delete_database, self._lose_secret,
            )
        )  # fmt: skip
        of_database = act in (self._put_database, self._suspend_database, self._delete_database)
        act(database if of_database else where)

    def _put_policy(self, key: Key) -> None:
        self._changes(key)
        self.cluster.api.put(POLICY, key, self._draw.policy(self._databases))

    def _delete_policy(self, key: Key) -> None:
        if (POLICY, key) in self.cluster.api.objects:
            self.ground.tell(f"{key} is deleted")
            self.cluster.api.delete(POLICY, key)
            if self._random.random() < 0.7:
                self.ground.loop.after(60 * self._random.random() ** 4, self._put_policy, key)

    def _suspend_policy(self, key: Key) -> None:
        stored = self.cluster.api.objects.get((POLICY, key))
        if stored is not None:
            self._changes(key)
            spec = stored["spec"]
            self.cluster.api.put(POLICY, key, spec | {"suspend": not spec.get("suspend", False)})

    def _request(self, key: Key) -> None:
        if (POLICY, key) in self.cluster.api.objects:
            for _ in range(self._random.choice((1, 1, 2))):
                self._tokens += 1
                self.ground.tell(f"{key} is asked for token-{self._tokens}")
                self.cluster.api.annotate(key, f"token-{self._tokens}")

    def _changes(self, key: Key) -> None:
        self.ground.tell(f"{key} is put")
        stored = self.cluster.api.objects.get((POLICY, key))
        if stored is not None:
            self.accounts.books[stored["metadata"]["uid"]].is_plain = False

    def _put_database(self, key: Key) -> None:
        self._database_changes(key)
        server = self._random.choice([*self.servers])
        self.cluster.secrets.data[key._replace(name=server)] = secret_of(server)
        self.cluster.api.put(DATABASE, key, self._draw.database(server))

    def _suspend_database(self, key: Key) -> None:
        stored = self.cluster.api.objects.get((DATABASE, key))
        if stored is not None:
            self._database_changes(key)
            spec = stored["spec"]
            self.cluster.api.put(DATABASE, key, spec | {"suspend": not spec.get("suspend", False)})

    def _delete_database(self, key: Key) -> None:
        if (DATABASE, key) in self.cluster.api.objects:
            self._database_changes(key)
            self.cluster.api.delete(DATABASE, key)
            self.ground.loop.after(120 * self._random.random(), self._put_database, key)

    def _database_changes(self, key: Key) -> None:
        self.ground.tell(f"{key} is changed")
        for (kind, where), body in self.cluster.api.objects.items():
            if kind == POLICY and where.namespace == key.namespace and body["spec"]["databaseRef"]["name"] == key.name:
                self.accounts.books[body["metadata"]["uid"]].is_plain = False

    def _lose_secret(self, key: Key) -> None:
        where = key._replace(name=self._random.choice([*self.servers]))
        data = self.cluster.secrets.data.pop(where, None)
        if data is not None:
            self.ground.tell(f"Secret {where} is deleted")
            back = min(100 * self._random.random(), max(0.0, self.seconds - self.ground.now))
            self.ground.loop.after(back, self.cluster.secrets.data.setdefault, where, data)

    # What goes wrong.

    def _one(self) -> Process:
        return self.processes[0] if len(self.processes) == 1 else self._random.choice(self.processes)

    def _kill(self) -> None:
        self._one().kill()
        self._restart_later()

    def _terminate(self) -> None:
        process = self._one()
        process.terminate(grace_seconds=self._random.choice((0, 5, 20)))
        self.ground.loop.after(40, process.kill)
        self._restart_later(after=40)

    def _restart_later(self, *, after: float = 0.0) -> None:
        self.ground.loop.after(after + 90 * self._random.random() ** 3, self._restart)

    def _restart(self) -> None:
        for index, process in enumerate(self.processes):
            if not process.alive:
                self.processes[index] = self._new_process(process.shard)
                self.processes[index].start()

    def _pause(self) -> None:
        process = self._one()
        if process.alive:
            self.ground.tell(f"{process} is paused")
            process.life.paused = True
            self.ground.loop.after(120 * self._random.random(), self._go_on, process)

    def _go_on(self, process: Process) -> None:
        if process.life.paused:
            self.ground.tell(f"{process} goes on")
            process.disturbed_at = self.ground.now
            self.ground.loop.resume(process.life)

    def _lose_api(self) -> None:
        self.ground.tell("the API server is out of reach")
        self.cluster.is_down = True
        self.ground.loop.after(300 * self._random.random() ** 2, self._find_api)

    def _find_api(self) -> None:
        if self.cluster.is_down:
            self.ground.tell("the API server is there again")
            self.cluster.is_down = False
            for process in self.processes:
                process.disturbed_at = self.ground.now

    def _fail_server(self) -> None:
        server = self._random.choice([*self.servers.values()])
        self.ground.tell(f"{server.host} is down")
        server.crash()
        self.ground.loop.after(120 * self._random.random() ** 2, self._heal_server, server)

    def _hang_server(self) -> None:
        server = self._random.choice([*self.servers.values()])
        self.ground.tell(f"{server.host} hangs")
        server.is_hung = True
        self.ground.loop.after(200 * self._random.random(), self._heal_server, server)

    def _heal_server(self, server: Server) -> None:
        self.ground.tell(f"{server.host} is well")
        server.heal()

    def _take_lock(self) -> None:
        server, view = self._random.choice([*self.servers.values()]), self._random.choice(("a", "b", "c"))
        if view not in server.locks:
            self.ground.tell(f"a rival refreshes {view} on {server.host}")
            server.locks[view] = "a rival"
            self.ground.loop.after(100 * self._random.random(), self._free_lock, server, view)

    def _free_lock(self, server: Server, view: str) -> None:
        if server.locks.get(view) == "a rival":
            del server.locks[view]

    def _set_clock(self) -> None:
        self.ground.set_clock(self._random.choice((-3600, -120, -5, 5, 120, 3600, 15_000)))

    def _touch(self) -> None:
        """Somebody else changes an object: a status on its way meets a conflict."""
        for body in [body for (kind, _), body in self.cluster.api.objects.items() if kind == POLICY]:
            meta = body["metadata"]
            annotations = meta.get("annotations", {}) | {"touched": str(self.ground.now)}
            key = place(meta["namespace"], meta["name"])
            self.cluster.api.put(POLICY, key, body["spec"], annotations=annotations)

"""MatviewDatabase: how to reach one PostgreSQL database, its limits, and what the operator found there."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from matview_operator.api.condition import Conditions
from matview_operator.api.model import ClosedSet, CustomObject, Model, Optional
from matview_operator.api.scalar import Count, Identifier, ObjectName, SearchPathSchema, SecretKey
from matview_operator.api.window import Windows


class SslMode(ClosedSet):
    """How the connection is protected, in libpq's words."""

    DISABLE = "disable"
    REQUIRE = "require"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"


class Bookkeeping(ClosedSet):
    """Whether the database has the ledger that makes a slot's refresh happen exactly once."""

    INSTALLED = "Installed"
    MISSING = "Missing"
    OUTDATED = "Outdated"


class SecretRef(Model):
    """A Secret of the same namespace: without a namespace field, nobody can reach another tenant's."""

    name: ObjectName
    """Name of a Secret in the same namespace as this MatviewDatabase."""


class SecretKeys(Model):
    """What a Secret calls the parts of a connection, where it does not call them as CloudNativePG does."""

    host: Optional[SecretKey] = None
    """Key of the host name or address, by default host."""
    port: Optional[SecretKey] = None
    """Key of the port, by default port; 5432 if there is none."""
    dbname: Optional[SecretKey] = None
    """Key of the database's name, by default dbname."""
    username: Optional[SecretKey] = None
    """Key of the role's name, by default username, or else user."""
    password: Optional[SecretKey] = None
    """Key of the password, by default password. It may be missing where a client certificate is there."""
    uri: Optional[SecretKey] = None
    """Key of a whole postgresql:// URL, by default uri, which is read if there is no host. Naming it here, and
    no host, makes the URL win."""
    ca_cert: Optional[SecretKey] = None
    """Key of the certificates in PEM form that the server's certificate must be signed by, by default
    ca.crt."""
    tls_cert: Optional[SecretKey] = None
    """Key of a client certificate in PEM form with the chain that it needs, by default tls.crt, as in Secrets
    of type kubernetes.io/tls."""
    tls_key: Optional[SecretKey] = None
    """Key of the client certificate's private key in PEM form, not encrypted, by default tls.key."""


class CaRef(Model):
    """A CA that lies in a Secret of its own, which may hold the CA's private key too: nothing else is read of it."""

    name: ObjectName
    """Name of a Secret in the same namespace as this MatviewDatabase, as CloudNativePG's <cluster>-ca."""
    key: SecretKey = "ca.crt"
    """The key in it that holds the certificates in PEM form."""


class DatabaseLimits(Model):
    """What runs on one database may take."""

    max_concurrent_refreshes: Annotated[int, Field(ge=1, le=100)] = 2
    """How many views of this database may be refreshed at the same time. More than the server has idle cores
    rarely helps: a refresh is as heavy as the view's query."""
    min_interval_seconds: Annotated[int, Field(ge=0, le=86_400)] = 10
    """How many seconds lie at least between the starts of two scheduled refreshes of one view, whatever its
    policies' schedules say. A slot that comes sooner waits so long; if a newer one comes meanwhile, it is
    missed. Requested refreshes do not wait. 0 is no bound."""
    timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 3600
    """The longest that one refresh may take, in seconds; then it is cancelled, and the view keeps its old
    rows. Also the most that a view's own timeoutSeconds may ask for."""
    lock_timeout_millis: Optional[Annotated[int, Field(ge=1, le=600_000)]] = None
    """How long a refresh waits for a lock on the view, in milliseconds. By default the server's
    deadlock_timeout plus 500 ms, enough for PostgreSQL to make an autovacuum give way. New readers queue
    behind a waiting blocking refresh, so keep it short."""


CHECK_INTERVAL_SECONDS = 300


class Inventory(Model):
    """What the operator looks at without refreshing anything."""

    check_interval_seconds: Annotated[int, Field(ge=30, le=86_400)] = CHECK_INTERVAL_SECONDS
    """How often the database and the views of its policies are looked at, in seconds, besides at every change of
    a policy or of this object. A view that was created or mended is found no later than this, and a slot that
    failed for want of it is run again if it may still start."""


SearchPath = Annotated[
    tuple[SearchPathSchema, ...],
    Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
]


class MatviewDatabaseSpec(Model):
    """How to reach one PostgreSQL database, and what may be asked of it."""

    secret_ref: SecretRef
    """The Secret with the connection's data, in the keys that CloudNativePG writes: either uri, or host,
    port, dbname, username (or user) and password; ca.crt if the server's certificate is to be verified; tls.crt
    and tls.key for a client certificate. It is read once for each slot and each check, never listed and never
    stored."""
    secret_keys: SecretKeys = SecretKeys()
    """Other names for the Secret's keys, for a Secret that something else has made. A key that is named here
    must be there."""
    ca_ref: Optional[CaRef] = None
    """Where the CA lies that the server's certificate must be signed by, if not in the Secret itself; it wins
    over the Secret's ca.crt. Read as often as the Secret."""
    database: Optional[Identifier] = None
    """Name of the database, if it is not the one that the Secret names. Host and port come from the Secret
    only, so that its password is never sent to another server."""
    ssl_mode: Optional[SslMode] = None
    """How the connection is protected: disable, require (encrypted, server not verified), verify-ca or
    verify-full. By default verify-full where there is a CA (caRef, or ca.crt in the Secret), else require.
    verify-ca needs a CA; verify-full without one trusts the CAs of the operator's image."""
    allow_superuser: bool = False
    """Whether a superuser role is accepted. By default it is refused: refreshing needs ownership of the
    views, or on PostgreSQL 17 and later the MAINTAIN privilege, and nothing more."""
    search_path: SearchPath = ()
    """Schemas in which functions that a view calls may find names without a schema, in this order, on
    PostgreSQL 15 and 16; pg_catalog comes before them and pg_temp after them. None by default: whoever may
    create objects in one of these schemas can have them run by every refresh, as the view's owner. Prefer
    ALTER FUNCTION … SET search_path. PostgreSQL 17 and later fix the search path of REFRESH themselves: there
    this field has no effect."""
    limits: DatabaseLimits = DatabaseLimits()
    """Bounds for every refresh on this database, whichever policy asks for it."""
    inventory: Inventory = Inventory()
    """How the operator keeps itself informed of what is in this database."""
    windows: Windows = ()
    """When refreshes may start on this database, for scheduled and requested ones alike: at no time that a Deny
    window covers and, if there are Allow windows, only while one of them is open. What becomes due meanwhile
    waits, and is run once when it may start, if startingDeadlineSeconds allows. A refresh that runs when a
    window closes it goes on to its end."""
    suspend: bool = False
    """Whether to leave this database alone altogether: no scheduled refreshes, no requested ones, no checks.
    Slots that become due meanwhile are missed. Refreshes that run at that moment are stopped on the server
    within a second, and their views keep their old rows."""


class ServerStatus(Model):
    """What the operator found at the other end of the connection."""

    version: Annotated[str, Field(max_length=64)]
    """The server's version, as in 16.4."""
    system_identifier: Annotated[str, Field(max_length=20)]
    """The number that the server's data directory got from initdb; another one means another server."""
    database: Annotated[str, Field(max_length=63)]
    """The database that the connection reached."""
    role: Annotated[str, Field(max_length=63)]
    """The role that the operator works as."""
    superuser: bool
    """Whether that role is a superuser."""
    in_recovery: bool
    """Whether the server is a standby. Views can be refreshed on the primary only."""
    bookkeeping: Bookkeeping
    """Whether the ledger is there that makes every slot's refresh happen exactly once: Installed, Missing or
    Outdated (also if somebody changed it, so that it cannot be trusted). `matview-operator migrate` installs
    it; the condition Ready says what to do. Without it a crash at the wrong moment repeats one refresh."""


class MatviewDatabaseStatus(Model):
    """What the operator knows about the database; written by the operator alone."""

    observed_generation: Optional[Count] = None
    """The metadata.generation of the newest spec that the operator has acted on."""
    conditions: Conditions = ()
    """Ready: the Secret is usable, the server answers, and the role may work there. Stalled, present only
    when True: a person has to mend something."""
    server: Optional[ServerStatus] = None
    """The server as found by the newest successful check."""


class MatviewDatabase(CustomObject):
    """MatviewDatabase says how to reach one PostgreSQL database whose materialized views are to be kept
    fresh.
    """

    KIND: ClassVar[str] = "MatviewDatabase"
    PLURAL: ClassVar[str] = "matviewdatabases"

    spec: MatviewDatabaseSpec
    """How to reach the database, and what may be asked of it."""
    status: Optional[MatviewDatabaseStatus] = None
    """What the operator found. Written by the operator alone."""

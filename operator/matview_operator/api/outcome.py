"""How a run ends: closed sets that status, logs, metrics, the ledger and the command line share."""

from matview_operator.api.model import ClosedSet


class RefreshOutcome(ClosedSet):
    """How one run ended. A skip is neither a failure nor freshness."""

    SUCCESS = "SUCCESS"
    SKIPPED_LOCK_HELD = "SKIPPED_LOCK_HELD"
    """Another session holds the view's lock; the slot stays due."""
    SKIPPED_COVERED = "SKIPPED_COVERED"
    """Another run that started at or after this slot already did the work."""
    SKIPPED_UNCHANGED = "SKIPPED_UNCHANGED"
    SKIPPED_UPSTREAM = "SKIPPED_UPSTREAM"
    """A view that this one reads was due with it and failed."""
    REJECTED_BY_GUARD = "REJECTED_BY_GUARD"
    """The new rows were not what the view's guard asks for, or it could not be checked: rolled back."""
    INTERRUPTED = "INTERRUPTED"
    """Shutdown, cancellation or a lost connection before COMMIT: nothing changed."""
    UNKNOWN = "UNKNOWN"
    """The connection was lost during COMMIT: the server alone knows."""
    FAILED = "FAILED"


class RefreshMode(ClosedSet):
    """How REFRESH ran: Concurrent lets readers read, Blocking makes them wait."""

    CONCURRENT = "Concurrent"
    BLOCKING = "Blocking"


class RefreshReason(ClosedSet):
    """Why a run ended as it did, or why a resource is not ready. CamelCase, as conditions want it."""

    # Good ends that need a word.
    COVERED = "Covered"
    RECOVERED = "Recovered"
    FIRST_POPULATE = "FirstPopulate"
    UPSTREAM_FAILED = "UpstreamFailed"
    GROUP_ROLLED_BACK = "GroupRolledBack"

    # What a person has to mend in a resource.
    INVALID_SPEC = "InvalidSpec"
    DATABASE_NOT_FOUND = "DatabaseNotFound"
    DATABASE_NOT_READY = "DatabaseNotReady"
    DATABASE_SUSPENDED = "DatabaseSuspended"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a secret
    SECRET_FORBIDDEN = "SecretForbidden"  # noqa: S105 - a reason, not a secret
    SECRET_INVALID = "SecretInvalid"  # noqa: S105 - a reason, not a secret
    HOST_NOT_ALLOWED = "HostNotAllowed"
    SHARED_VIEW = "SharedView"
    DEPENDENCY_CYCLE = "DependencyCycle"
    DEPENDENCY_MISSING = "DependencyMissing"

    # What the server or its catalogue says.
    VIEW_NOT_FOUND = "ViewNotFound"
    UNSAFE_SEARCH_PATH = "UnsafeSearchPath"
    NOT_MATERIALIZED_VIEW = "NotMaterializedView"
    NOT_POPULATED = "NotPopulated"
    NO_UNIQUE_INDEX = "NoUniqueIndex"
    DUPLICATE_ROWS = "DuplicateRows"
    PERMISSION_DENIED = "PermissionDenied"
    ROW_SECURITY_HAZARD = "RowSecurityHazard"
    TENANT_SETTING_INVALID = "TenantSettingInvalid"
    TENANT_SETTING_LEAKED = "TenantSettingLeaked"
    VIEW_QUERY_FAILED = "ViewQueryFailed"
    VIEW_REPLACED = "ViewReplaced"
    SUPERUSER_REFUSED = "SuperuserRefused"
    VULNERABLE_SERVER = "VulnerableServer"
    READ_ONLY_SERVER = "ReadOnlyServer"
    SERVER_RESOURCES = "ServerResources"
    SERVER_BUSY = "ServerBusy"

    # What the view's guard says of the new rows.
    TOO_FEW_ROWS = "TooFewRows"
    TOO_MANY_ROWS_LOST = "TooManyRowsLost"
    TENANTS_LOST = "TenantsLost"
    GUARD_FAILED = "GuardFailed"
    """The guard could not be checked, so the rows were not accepted."""

    # Waiting and being stopped.
    LOCK_HELD = "LockHeld"
    LOCK_TIMEOUT = "LockTimeout"
    TIMEOUT = "Timeout"
    CANCELLED = "Cancelled"
    DEADLOCK = "Deadlock"
    SHUTDOWN = "Shutdown"

    # The connection.
    CONNECTION_FAILED = "ConnectionFailed"
    CONNECTION_LOST = "ConnectionLost"
    COMMIT_UNKNOWN = "CommitUnknown"
    AUTHENTICATION_FAILED = "AuthenticationFailed"
    CONNECT_REJECTED = "ConnectRejected"
    TLS_FAILED = "TlsFailed"

    INTERNAL_ERROR = "InternalError"

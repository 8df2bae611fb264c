"""What `--help` shows below the options of each command."""

from __future__ import annotations

RUN = """
\b
Examples:
  matview-operator run --namespace analytics --log-format text
  MATVIEW_NAMESPACES=analytics,finance matview-operator run
"""
REFRESH = """
\b
Examples:
  export DATABASE_URL=postgresql://reporting:PASSWORD@db.example.com/analytics
  matview-operator refresh daily_revenue finance.costs
  until matview-operator refresh --all --correlation-id "import-$BATCH"; do sleep 10; done
  matview-operator refresh daily_revenue --max-row-loss-percent 20 --keep-tenants tenant_id
  matview-operator refresh --all -o json | jq -r '.[] | select(.outcome != "SUCCESS") | .view_name'
"""
MIGRATE = """
\b
Examples:
  export DATABASE_URL=postgresql://owner:PASSWORD@db.example.com/analytics
  matview-operator migrate --grant-to reporting
  matview-operator migrate --check
  matview-operator migrate --down
"""
PRUNE = """
\b
Example:
  matview-operator prune --keep-days 90
"""
LOCK_KEYS = """
\b
Example:
  matview-operator lock-keys finance.costs
"""
CRDS = """
\b
Example:
  matview-operator crds | kubectl apply --server-side -f -
"""
VERSION = """
\b
Example:
  matview-operator version
"""

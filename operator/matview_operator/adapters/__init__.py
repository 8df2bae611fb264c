"""The world outside: Kubernetes, PostgreSQL, Prometheus, HTTP. Adapters do not know each other."""

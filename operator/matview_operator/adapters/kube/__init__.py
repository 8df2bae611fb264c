"""Kubernetes: the watch by kopf, and the few calls of our own: status, events, one Secret at a time, a list."""

"""Reaching a server: its address, TLS, authentication, and the bytes that it may make us hold. Knows no statement."""

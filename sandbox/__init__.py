"""Real servers for the demo, the tests and the benchmarks: PostgreSQL, PgBouncer, a Kubernetes control plane.

What may live here: code that finds, builds, starts and stops servers on this machine's loopback. It may not
import matview_operator, and nothing in the operator may import it; it is never in the wheel or the image.
"""

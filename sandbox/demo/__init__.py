"""The demo: views that lag behind their tables and become fresh, seen from outside.

What may live here: code that reads what any user can read, policies from the API server and numbers by SQL, and
shows it. Nothing here asks the operator.
"""

"""Run every benchmark."""

from __future__ import annotations

from bench.executor import main

if __name__ == "__main__":
    main()

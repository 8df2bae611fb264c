"""The moving parts: registry, timers, dispatcher, reporter, supervisor. asyncio on the Protocols of ports.py only."""

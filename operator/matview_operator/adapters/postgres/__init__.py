"""PostgreSQL: connecting, the catalogue, the transaction that refreshes a view, the ledger. asyncpg lives only here."""

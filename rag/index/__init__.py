"""Chunks to PostgreSQL: embedder, store and the Ray Data job."""

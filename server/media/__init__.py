"""Bytes and URLs to checked images: all limits and the fetch guard live here."""

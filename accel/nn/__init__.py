"""Modules that compute at a position set, and the compact pipeline between them."""

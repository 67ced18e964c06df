"""The CPU engine: C sources, their Python bindings, and the loader."""

"""Builds the C extensions with a compiler on every core: setuptools by itself compiles one file after the other.

For pyproject.toml alone, which names it; nothing of the package imports it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from setuptools.command.build_ext import build_ext


class BuildInParallel(build_ext):
    """setuptools' own command, the files of an extension compiled at the same time."""

    def build_extensions(self) -> None:
        compile_all = self.compiler.compile

        def compile_each(sources: list[str], *args: object, **kwargs: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(lambda source: compile_all([source], *args, **kwargs), sources)
                return [name for names in made for name in names]

        self.compiler.compile = compile_each
        super().build_extensions()

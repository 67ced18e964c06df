"""Builds the C extensions with a compiler on every core: setuptools by itself compiles one file after the other. An
editable install keeps what the one before it has built, where no file of it is newer.

For pyproject.toml alone, which names it; nothing of the package imports it.
"""

from __future__ import annotations

import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from setuptools.command.build_ext import build_ext

if TYPE_CHECKING:
    from setuptools import Extension


class Build(build_ext):
    """setuptools' own command, the files of an extension compiled at the same time, and only when they have changed."""

    def build_extensions(self) -> None:
        compile_all = self.compiler.compile

        def compile_each(sources: list[str], *args: object, **kwargs: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(lambda source: compile_all([source], *args, **kwargs), sources)
                return [name for names in made for name in names]

        self.compiler.compile = compile_each
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        made = self._built_before(ext)
        if made is None:
            super().build_extension(ext)
        else:
            target = self.get_ext_fullpath(ext.name)
            self.mkpath(os.path.dirname(target))
            self.copy_file(str(made), target)

    def _built_before(self, ext: Extension) -> pathlib.Path | None:
        """The extension beside its sources, if an editable install asks and all that it is made from is older."""
        if not self.editable_mode or self.force or "CFLAGS" in os.environ:
            return None
        package, _, _ = ext.name.rpartition(".")
        folder = self.get_finalized_command("build_py").get_package_dir(package)
        made = pathlib.Path(folder, pathlib.Path(self.get_ext_filename(ext.name)).name)
        sources = [*ext.sources, *ext.depends, "pyproject.toml", __file__]
        newest = max(os.path.getmtime(source) for source in sources)
        return made if made.exists() and made.stat().st_mtime > newest else None

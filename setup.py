"""Packaging: metadata and tools are in pyproject.toml.

The project's own ``build/`` is a source folder, so setuptools builds in ``.build/``.
"""

from setuptools import setup

setup(
    options={
        "build": {"build_base": ".build"},
        "egg_info": {"egg_base": "."},
    }
)

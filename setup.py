"""Only the extension; everything else is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("sticky._core", ["sticky/_core.pyx"], extra_compile_args=["-O3"]),
    ]
)

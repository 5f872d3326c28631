"""How the wheel is built: what setuptools takes, without the fixtures of this project's own tests."""

from __future__ import annotations

from setuptools.command import build_py


class BuildWithoutConftest(build_py.build_py):
    """Leaves `conftest.py` out: the harness is shipped, the tests and their fixtures are not."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules: list[tuple[str, str, str]] = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[1] != "conftest"]

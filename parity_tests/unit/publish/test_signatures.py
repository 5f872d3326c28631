"""Signatures are sigstore's, if it is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ...fixtures.commands import assert_one_line, end, invoke, start
from ...fixtures.paths import ROOT

FAKE_SIGSTORE = """\
import pathlib, sys
arguments = sys.argv[1:]
bundle = pathlib.Path(arguments[arguments.index("--bundle") + 1])
statement = pathlib.Path(arguments[-1]).read_text()
if arguments[0] == "sign":
    bundle.write_text(statement)
elif bundle.read_text() != statement or "me@example.org" not in arguments:
    sys.exit("FAIL: not the one who signed")
"""


def test_signing_is_left_to_sigstore(proven: Path, tmp_path: Path) -> None:
    (tmp_path / "sigstore").mkdir()
    (tmp_path / "sigstore" / "__init__.py").touch()
    (tmp_path / "sigstore" / "__main__.py").write_text(FAKE_SIGSTORE)
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    out = tmp_path / "out"
    assert end(start("publish", str(proven), "--to", str(out), "--sign", env=environment)).exit_code == 0
    good = ["verify-artifact", str(out), "--identity", "me@example.org", "--issuer", "https://example.org"]
    result = end(start(*good, env=environment))
    assert "signature   me@example.org, by https://example.org" in result.stdout, result
    assert "check it with --identity" in end(start("verify-artifact", str(out), env=environment)).stdout
    other = [argument.replace("me@", "you@") for argument in good]
    assert_one_line(end(start(*other, env=environment)), "sigstore verify failed (FAIL: not the one who signed)")


def test_signatures_that_cannot_be_checked(proven: Path, tmp_path: Path) -> None:
    if shutil.which("sigstore"):
        pytest.fail("these tests want an environment without sigstore")
    assert_one_line(invoke("publish", str(proven), "--to", str(tmp_path / "out"), "--sign"), "which is not installed")
    signer = ("--identity", "me@example.org", "--issuer", "https://example.org")
    assert_one_line(invoke("verify-artifact", str(proven), *signer), "is not signed. Publish it with --sign")
    assert_one_line(invoke("verify-artifact", str(proven), *signer[:2]), "Pass both --identity and --issuer")

"""``nox -s secrets`` finds the kinds of secrets that could slip into this repository."""

from __future__ import annotations

import json
import random
import string
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from stellar_sdk import Keypair

from microkit.auth import generate_service_keys
from noxfile import SCANNER

ROOT = Path(__file__).parent.parent.parent


def scan(folder: Path) -> dict[str, Any]:
    """What the session's own command says of a folder."""
    kingfisher = Path(sys.executable).with_name(SCANNER[0])
    rules = [str(ROOT / word) if word.startswith(".kingfisher") else word for word in SCANNER[1:]]
    ended = subprocess.run(
        [kingfisher, *rules, "--git-history", "none", "--format", "json", str(folder)],
        capture_output=True,
        check=False,
        timeout=240,
    )
    # A second document may follow the findings: what was looked at, in numbers.
    found: dict[str, Any] = json.JSONDecoder().raw_decode(ended.stdout.decode() or "{}")[0]
    assert ended.returncode == (200 if found.get("findings") else 0), ended.stderr.decode()
    return found


def test_planted_secrets_are_found_and_nothing_else_is(tmp_path: Path) -> None:
    letters = string.ascii_letters + string.digits
    identity = "AKIA" + "".join(random.choices(string.ascii_uppercase + "234567", k=16))
    plain = PrivateFormat.TraditionalOpenSSL, NoEncryption()
    pem = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, *plain).decode()
    planted = {
        "aws.py": f'key = "{identity}"\nsecret_key = "{b64encode(random.randbytes(30)).decode()}"\n',
        "github.py": f'token = "ghp_{"".join(random.choices(letters, k=36))}"\n',
        "database.env": f"DATABASE_URL=postgresql://billing:{random.randbytes(12).hex()}@db.internal:5432/billing\n",
        "key.pem": pem,
        "service-key.json": generate_service_keys(["billing"]).private["billing"],
        "seed.py": f'SEED = "{Keypair.random().secret}"\n',
    }
    for name, text in planted.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "harmless.py").write_text(f'ADDRESS = "{Keypair.random().public_key}"\nPASSWORD = settings.password\n')

    findings = scan(tmp_path)["findings"]

    assert {Path(one["finding"]["path"]).name for one in findings} == planted.keys()
    text = json.dumps(findings)
    assert identity not in text, "what was found is not shown"

"""What is measured again comes out again, where neither training nor a clock is in it."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.docs.conftest import ROOT

AGAIN = """
import json, sys
sys.path[:0] = ["docs", "docs/_ext", "."]
from measures import network
print(json.dumps(network.measure()))
"""


def test_sizes_of_networks_are_those_of_the_pages() -> None:
    again = subprocess.check_output([sys.executable, "-c", AGAIN], cwd=ROOT, text=True)
    kept = json.loads((ROOT / "docs" / "_data" / "network.json").read_text(encoding="utf-8"))
    assert json.loads(again) == kept["figures"]

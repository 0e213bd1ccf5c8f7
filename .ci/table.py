"""What each session of a CI run took, and how its tests ended: `python .ci/table.py SECONDS RESULTS`."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

seconds, results = sys.argv[1], Path(sys.argv[2])
total = dict.fromkeys(("passed", "failed", "skipped"), 0)
print(f"\n{'session':<20} {'seconds':>7}   result")
for report in sorted(results.glob("*.json"), key=lambda path: path.stat().st_mtime):
    for session in json.loads(report.read_text())["sessions"]:
        name = session["signatures"][0]
        line = f"{name:<20} {session['duration']:>7.0f}   {session['result']}"
        counted = results / f"{name}.xml"
        if counted.exists():
            suite = ElementTree.parse(counted).getroot()[0]
            count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
            failed = count["failures"] + count["errors"]
            ended = {
                "passed": count["tests"] - failed - count["skipped"],
                "failed": failed,
                "skipped": count["skipped"],
            }
            total = {key: total[key] + ended[key] for key in total}
            line += ": " + ", ".join(f"{number} {key}" for key, number in ended.items())
        print(line)
print(f"{'all':<20} {seconds:>7}")
print("tests: " + ", ".join(f"{number} {key}" for key, number in total.items()))

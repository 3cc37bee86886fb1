"""docs/tour.md, as a newcomer goes through it: its lines run as they stand, in a fresh clone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_tour_runs_from_a_fresh_clone(tmp_path):
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "suite")], check=True)
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / "tour.md").read_text(), re.M | re.S)
    assert len(blocks) == 7
    script = "set -euo pipefail\n" + "\n".join(blocks)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    made = tmp_path / "suite"
    done = subprocess.run(["bash", "-c", script], cwd=made, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "dequantised" in done.stdout and "highest first" in done.stdout
    assert (made / "changed.png").is_file() and list(made.rglob("report.html"))
    assert list((made / "models").glob("*/export/model.safetensors"))

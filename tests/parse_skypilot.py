"""Has SkyPilot's own parser read task files, in a Python where SkyPilot is installed: parse_skypilot.py FILE ...

SkyPilot looks up the names of accelerators in a catalogue that it downloads: a small one is put in its place, in
HOME, which is a folder of the test's.
"""

import json
import pathlib
import sys

from sky.skylet import constants

CATALOGUE = "AcceleratorName,Clouds\n" + "".join(f"{name},\"['AWS', 'GCP']\"\n" for name in ("A100", "H100", "L4"))
path = pathlib.Path.home() / ".sky" / "catalogs" / constants.CATALOG_SCHEMA_VERSION / "common" / "accelerators.csv"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(CATALOGUE)

import sky  # noqa: E402

tasks = [sky.Task.from_yaml(path) for path in sys.argv[1:]]
parsed = [
  {
    "name": task.name,
    "nodes": task.num_nodes,
    "accelerators": [each.accelerators for each in task.resources],
    "spot": [each.use_spot for each in task.resources],
    "recovery": [each.job_recovery for each in task.resources],
    "mounts": {target: storage.mode.value for target, storage in task.storage_mounts.items()},
    "setup": task.setup,
    "run": task.run,
  }
  for task in tasks
]
print(json.dumps(parsed))

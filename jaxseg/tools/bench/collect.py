"""`python -m jaxseg.tools.bench.collect RESULTS WORKDIR...`: benches of one machine as one JSON file and one table.

The row's name is the work directory's; launch/bench.sh calls this after the last row.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxseg.core.errors import JaxsegError
from jaxseg.core.files import write_text
from jaxseg.tools.bench.mode import FILE_NAME
from jaxseg.tools.bench.summary import bench_markdown


def machine_name(device: Mapping[str, Any]) -> str:
    """`cpu2` for two cores, `nvidia-h200`, `4x-tpu-v5-lite`: what stands in a file's name."""
    if device["platform"] == "cpu":
        return f"cpu{device['cores']}"
    kind = re.sub(r"[^a-z0-9]+", "-", device["kind"].lower()).strip("-")
    return f"{device['devices']}x-{kind}" if device["devices"] > 1 else kind


def collect(folders: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Name of the folder -> its bench.json.

    Raises:
      JaxsegError: a folder without one, or of another machine than the first.
    """
    results: dict[str, Any] = {}
    for folder in folders:
        path = folder / FILE_NAME
        if not path.is_file():
            raise JaxsegError(f"{path} is not there: run --mode=bench with --workdir={folder} first.")
        results[folder.name] = json.loads(path.read_text(encoding="utf-8"))
    machines = {machine_name(result["device"]) for result in results.values()}
    if len(machines) != 1:
        raise JaxsegError(f"These benches are of several machines: {', '.join(sorted(machines))}. Give those of one.")
    return results


def main() -> None:
    """Writes both files, or says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m jaxseg.tools.bench.collect", description=__doc__)
    parser.add_argument("results", type=pathlib.Path, help="folder of the two files")
    parser.add_argument("workdirs", type=pathlib.Path, nargs="+")
    arguments = parser.parse_args()
    try:
        rows = collect(arguments.workdirs)
        first = next(iter(rows.values()))
        name = f"bench-{machine_name(first['device'])}-{first['made_with']['date'][:10]}"
        write_text(arguments.results / f"{name}.json", json.dumps({"rows": rows}, indent=1) + "\n")
        write_text(arguments.results / f"{name}.md", bench_markdown(rows))
    except JaxsegError as error:
        sys.exit(f"jaxseg: {error}")
    print(f"Written: {arguments.results / name}.json and .md")


if __name__ == "__main__":
    main()

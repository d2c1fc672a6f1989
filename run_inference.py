#!/usr/bin/env python3
"""Runs bitnet-cli with the flags of bitnet.cpp's run_inference.py.

    python3 run_inference.py -m model.gguf -p "Once upon a time" -n 100 -t 4 -c 2048 -temp 0.8
    python3 run_inference.py -m model.gguf -p "You are a helpful assistant" -cnv

All flags go to `bitnet-cli run`, which knows these and more; `--help` lists them. Without -t it finds the number of
threads itself, and without -m it runs its built-in demo model.
"""

import os
import shutil
import subprocess
import sys


def find():
    """The program: $BITNET_CLI, the one built beside this script, or the one on the PATH."""
    chosen = os.environ.get("BITNET_CLI")
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            sys.exit(f"error: BITNET_CLI={chosen} is not a program\nhint: set it to the path of bitnet-cli, or unset it")
        return found
    name = "bitnet-cli.exe" if os.name == "nt" else "bitnet-cli"
    built = os.path.join(os.path.dirname(os.path.abspath(__file__)), "target", "release", name)
    found = shutil.which(built) or shutil.which("bitnet-cli")
    if found is None:
        sys.exit(
            f"error: bitnet-cli is neither at {built} nor on the PATH\n"
            "hint: build it with `cargo build --release`, or set BITNET_CLI to its path"
        )
    return found


def main():
    command = [find(), "run", *sys.argv[1:]]
    if os.name == "nt":  # there, exec returns to the shell before the program ends
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()

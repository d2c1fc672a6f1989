#!/usr/bin/env python3
"""Answers many prompts at once with `bitnet-cli parallel`.

    python3 parallel_inference.py "First prompt" "Second prompt"

All arguments go to `bitnet-cli parallel`; `--help` lists them. Without any, at a terminal, it asks what to do.
"""

import os
import subprocess
import sys

sys.dont_write_bytecode = True  # of the script beside this one
from run_inference import find  # noqa: E402

MENU = {"1": ["--benchmark-strategies"], "2": ["--interactive"], "3": ["--demo"]}


def chosen():
    """The arguments, or what a person chooses in their place."""
    if len(sys.argv) > 1 or not sys.stdin.isatty():
        return sys.argv[1:]
    print("1  compare strategies\n2  interactive\n3  quick demo", file=sys.stderr)
    while True:
        print("choice: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        if line.strip() in MENU:
            return MENU[line.strip()]


def main():
    command = [find(), "parallel", *chosen()]
    if os.name == "nt":  # there, exec returns to the shell before the program ends
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()

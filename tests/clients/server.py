"""A `bitnet-cli serve` on a free port, for the length of a `with`."""

import re
import signal
import subprocess


class Server:
    def __init__(self, program, *flags):
        command = [program, "serve", "--port", "0", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.url = None

    def __enter__(self):
        for line in self.process.stderr:
            found = re.search(r"answers at (http://\S+)/v1", line)
            if found:
                self.url = found[1]
                return self
        raise RuntimeError("the server ended before it was ready")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        assert code == 0, f"the server ended with code {code}"

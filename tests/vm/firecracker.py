"""One real Firecracker process: its configuration, its guest's serial port, its end."""

import http.client
import json
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from tests.harness.processes import process_status
from tests.harness.waiting import wait_until
from tests.vm.firecracker_images import FirecrackerImages

MIB = 1 << 20
MEM_MIB = 256
BALLOON: dict[str, object] = {
    "amount_mib": 0,
    "deflate_on_oom": True,
    "stats_polling_interval_s": 1,
}


class Firecracker:
    """A microVM that is configured and not started yet. `stop` it at the end."""

    def __init__(
        self,
        images: FirecrackerImages,
        mem_mib: int = MEM_MIB,
        balloon: dict[str, object] | None = BALLOON,
    ) -> None:
        # In /tmp, because a socket's path has room for 107 bytes only.
        self._run_dir = Path(tempfile.mkdtemp(prefix="balloond-firecracker-"))
        self.socket = self._run_dir / "api.sock"
        self._console = self._run_dir / "console"
        self._log = self._run_dir / "log"
        self._log.touch()
        # Its guest polls, so it runs when nobody else wants the processor.
        command = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10", str(images.firecracker)]
        command += [
            "--api-sock",
            str(self.socket),
            "--log-path",
            str(self._log),
            "--level",
            "Warn",
        ]
        with self._console.open("w") as console:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=console, stderr=subprocess.STDOUT, bufsize=0
            )
        try:
            wait_until(self._listens, what="Firecracker listens", seen=self.log)
            self.ask("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": mem_mib})
            self.ask("PUT", "/boot-source", {"kernel_image_path": str(images.guest)})
            if balloon is not None:
                self.ask("PUT", "/balloon", balloon)
        except BaseException:
            self.stop()
            raise

    def _listens(self) -> bool:
        # Not whether its socket exists: that is so a moment before Firecracker listens there.
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(self.socket)) == 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Starts its guest, which takes a second for each 150 MiB or so to listen."""
        self.ask("PUT", "/actions", {"action_type": "InstanceStart"})

    def wait_ready(self) -> None:
        """Waits until its guest's driver listens."""
        self.wait_said("ready")

    def ask(self, method: str, target: str, body: object = None) -> object:
        """Makes an API call, with a client that is not balloond's.

        Raises:
            AssertionError: it was refused.
        """
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.socket))
            client = http.client.HTTPConnection("localhost")
            client.sock = sock
            client.request(method, target, None if body is None else json.dumps(body))
            answer = client.getresponse()
            text = answer.read()
        assert answer.status < 300, f"{method} {target}: {answer.status} {text!r}"
        return json.loads(text) if text else None

    def tell(self, line: str) -> None:
        """Writes a line to its guest's serial port."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def said(self) -> list[str]:
        """The whole lines that its guest has written, without balloond's nor Firecracker's."""
        return self._console.read_text(errors="replace").split("\n")[:-1]

    def wait_said(self, word: str, times: int = 1) -> str:
        """Waits until its guest has written lines that begin with a word; returns the last."""

        def lines() -> list[str]:
            found = [line for line in self.said() if line.startswith(word)]
            return found if len(found) >= times else []

        return wait_until(lines, what=f"the guest says {word}", seen=self.said)[-1]

    def actual_mib(self) -> int:
        """Its balloon's size, as its driver last said."""
        sizes = self.ask("GET", "/balloon/statistics")
        assert isinstance(sizes, dict)
        return int(sizes["actual_mib"])

    def log(self) -> str:
        """Firecracker's own warnings and errors."""
        return self._log.read_text()

    def held_bytes(self) -> int:
        """What the host holds for it: its resident set."""
        return int(process_status(self.pid)["VmRSS"].split()[0]) * 1024

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """Kills it and waits until it and its files are gone."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        shutil.rmtree(self._run_dir, ignore_errors=True)

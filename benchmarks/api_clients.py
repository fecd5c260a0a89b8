"""Many clients of the API at once, in a process of their own, so that they take no time of whoever
measures: ``python -m benchmarks.api_clients SOCKET COUNT``.

For each path on standard input it closes the clients of before, connects COUNT new ones and has
each ask for that path; then it answers with a line. An empty line only closes.
"""

import socket
import sys


def main(path: str, count: int) -> None:
    """Serves until its input ends."""
    clients: list[socket.socket] = []
    for line in sys.stdin:
        while clients:
            clients.pop().close()
        request = f"GET {line.strip()} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        for _ in range(count if line.strip() else 0):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            client.connect(path)
            clients.append(client)
        for client in clients:
            client.sendall(request)
        print("asked", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

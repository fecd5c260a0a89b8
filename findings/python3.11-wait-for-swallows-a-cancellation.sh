#!/usr/bin/env bash
# Packages:  Debian bookworm: python3.11-minimal and libpython3.11-stdlib 3.11.2-6+deb12u8
# Guess:     a task that is cancelled while it waits is cancelled, or has ended by itself just before:
#            asyncio.wait_for(x, 60) waits for x as `async with asyncio.timeout(60)` does.
# Behaviour: if the result comes in the same turn of the loop as the cancellation, wait_for returns it
#            and keeps the cancellation to itself. The task goes on as if nobody had wanted its end,
#            and whoever cancelled it and waits for that may wait for ever. Two things have to happen
#            in one turn, so it shows on a busy machine and in no test. Python 3.12 has another one.
# Output:    timeout: CancelledError
#            wait_for: went on
set -eu
box=$(mktemp -d)
trap 'rm -rf "$box"' EXIT
"$(dirname "$0")/fetch" "$box" bookworm {python3.11-minimal,libpython3.11-stdlib}=3.11.2-6+deb12u8

PYTHONHOME=$box/usr "$box/run" python3.11 -I - <<'EOF' | "$(dirname "$0")/as-stated" "$0"
import asyncio


async def with_timeout(future):
    async with asyncio.timeout(60):
        await future


async def with_wait_for(future):
    await asyncio.wait_for(future, 60)


async def wait(how, future):
    try:
        await how(future)
    except asyncio.CancelledError:
        return "CancelledError"
    return "went on"


async def main():
    for how in (with_timeout, with_wait_for):
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(wait(how, future))
        await asyncio.sleep(0)  # The task begins to wait.
        future.set_result(None)
        task.cancel()
        print(f"{how.__name__.removeprefix('with_')}: {await task}")


asyncio.run(main())
EOF

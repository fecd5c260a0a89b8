"""``python -m tests.soak --time SECONDS``: its last line is a JSON object.

Chaos for that time, then each attack of a hostile user for a tenth of it, at most a minute
(``--no-attacks``: none).
"""

import argparse
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

from tests.soak.attacks import CONTROL, Outcome, attack, possible_plans
from tests.soak.chaos import Chaos
from tests.soak.picture import draw
from tests.soak.world import Host, can_keep_fds

BUILD = Path(__file__).parents[2] / "build"
LASTING_GUESTS, MORTAL_GUESTS = 4, 2
LONGEST_ATTACK_S, SHORTEST_ATTACK_S = 60.0, 1.0
"""What an attack fills is full within seconds; what leaks or creeps shows within a minute."""


def main() -> int:
    """Returns 0 where nothing was lost, nothing grew and nobody had to wait, else 1."""
    plans = possible_plans()
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--time", type=float, default=600, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=int(time.time()), metavar="N")
    parser.add_argument("--dir", type=Path, default=BUILD / "soak", metavar="DIR")
    parser.add_argument(
        "--reconnect", action="store_true", help="do not keep VMs over a controller's death"
    )
    parser.add_argument("--attacks-only", action="store_true", help="no chaos before them")
    parser.add_argument("--no-attacks", action="store_true", help="chaos alone")
    parser.add_argument(
        "--attack",
        dest="attacks",
        action="append",
        choices=plans,
        metavar="NAME",
        help=f"only this attack, and no chaos; may be repeated; {', '.join(plans)}",
    )
    args = parser.parse_args()
    closed = [str(each) for each in Path(__file__).parents if not each.stat().st_mode & 0o001]
    if plans and closed:
        parser.error(f"the attackers' users may not enter {closed[-1]}: use another checkout")
    shutil.rmtree(args.dir, ignore_errors=True)
    verdict: dict[str, object] = {"ok": True}
    if not args.attacks_only and not args.attacks:
        verdict = _chaos(args)
    each_s = max(SHORTEST_ATTACK_S, min(LONGEST_ATTACK_S, args.time / 10))
    wanted = args.attacks or ([] if args.no_attacks else plans)
    attacks = _attacks(wanted, each_s, args.dir)
    verdict["attacks"] = attacks
    verdict["ok"] = bool(verdict["ok"] and all(each["ok"] for each in attacks.values()))
    print(f"logs in {args.dir}")
    print(json.dumps(verdict), flush=True)
    return not verdict["ok"]


def _chaos(args: argparse.Namespace) -> dict[str, object]:
    keeps = can_keep_fds() and not args.reconnect
    after = "keep their balloons" if keeps else "connect again"
    print(f"seed {args.seed}, {args.time:.0f} s; VMs of a killed controller {after}", flush=True)
    with contextlib.ExitStack() as stack:
        lasting = Host("lasting", args.dir / "a", LASTING_GUESTS, keep_fds=False)
        stack.callback(lasting.close)
        mortal = Host("mortal", args.dir / "b", MORTAL_GUESTS, keep_fds=keeps)
        stack.callback(mortal.close)
        chaos = Chaos(lasting, mortal, Random(args.seed))
        chaos.run(args.time)
    for failure in chaos.tally.failures:
        print(failure)
    verdict = chaos.verdict()
    picture = BUILD / "soak.png"
    title = (
        f"{args.time:.0f} s: {verdict['device_kills']:,} devices and "
        f"{verdict['controller_kills']:,} controllers killed, "
        f"{verdict['pages_checked']:,} pages checked, {verdict['pages_lost']} lost"
    )
    draw(picture, chaos.gauges, chaos.tally.kill_times, title)
    print(picture, flush=True)
    return verdict


def _attacks(wanted: Iterable[str], seconds: float, folder: Path) -> dict[str, dict[str, object]]:
    """Makes the attacks; their parts of the last line, by name. The control comes first, as the
    others are held against it."""
    plans, computing, found = possible_plans(), None, {}
    for name in dict.fromkeys((CONTROL.name, *wanted) if wanted else ()):
        outcome = attack(plans[name], seconds, folder / name, beside_computing=computing)
        if name == CONTROL.name:
            computing = outcome.attacked
        found[name] = outcome.as_json()
        print(_line(outcome, "ok" if found[name]["ok"] else "NOT OK"), flush=True)
        for what in (*outcome.failures, *outcome.slow()):
            print(f"  {what}", flush=True)
    return found


def _line(outcome: Outcome, verdict: str) -> str:
    """What an attack did, for people."""
    usual = outcome.usual_p99_ms
    said = [f"{outcome.attack}, {outcome.seconds:g} s: {verdict}; the neighbour waits"]
    said.append(f"p99 {usual:.2f} ms without an attack,")
    if (delays := outcome.attacked) is not None:
        said.append(f"p50 {delays.p50_ms:.2f} p99 {delays.p99_ms:.2f} max {delays.max_ms:.1f} ms;")
    said.append(f"{outcome.cpu_share:.0%} of a core, {outcome.log_lines_a_second:g} lines/s,")
    said.append(f"descriptors {[each.get('controller', 0) for each in outcome.fds]},")
    said.append(f"back after {outcome.fds_back_s} s; SIGTERM to end {outcome.stop_s} s")
    return " ".join(said)


if __name__ == "__main__":
    sys.exit(main())

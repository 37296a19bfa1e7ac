"""Options, the order of events, exit codes: 0 done, 1 failed, 2 usage, 130 interrupted."""

import argparse
import fnmatch
import json
import os
import pathlib
import platform
import re
import sys

from . import BenchError, chart, contestants, fio, jobs, measure, peers, report, sandbox, verify

ROOT = pathlib.Path(__file__).resolve().parents[3]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
MIB = 1 << 20

EXAMPLES = """\
examples:
  cargo build --release --bins --examples            what the run compares
  benches/fio/run --install                          fetch fio and the peers (Debian, Ubuntu), then run all
  benches/fio/run --quick                            a few minutes: one round of 1 s, small files; no figures to quote
  benches/fio/run --only wrapdisk,null,qemu --only 4k-randread-d16,1m-*
  benches/fio/run --verify                           the same jobs with every block checked, no figures
  benches/fio/run --rounds 5 --markdown table.md --json all.json --chart chart.svg --strict
  benches/fio/run --dir /srv/scratch --size 4G       another file system than the tmpfs it mounts itself
  benches/fio/run --lab PATH/fusenull                the laboratory's null FUSE as a second ceiling, bare and with XTS

exit codes: 0 done (a missed ratio counts only with --strict), 1 failed (an I/O error or a failed verification of
wrapdisk is always a failure), 2 usage, 130 interrupted
"""


def size(text):
    """"512M" to bytes; binary units."""
    found = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed a number with K, M, G or T, such as 512M")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2].upper()]


def at_least_one(text):
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed a whole number from 1")
    return value


def parser():
    p = argparse.ArgumentParser(
        prog="benches/fio/run", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES,
        description="Compare wrapdisk with a bare file, a bare FUSE and its peers, by fio, interleaved in one run.")
    p.add_argument("--list", action="store_true", help="list contestants and jobs and stop")
    p.add_argument("--install", action="store_true", help="first install what is missing with apt")
    p.add_argument("--only", action="append", metavar="NAMES",
                   help="contestants, jobs (globs or beginnings) or 'peers', comma-separated; may be repeated")
    p.add_argument("--without", action="append", default=[], metavar="NAMES", help="contestants or jobs to leave out")
    p.add_argument("--verify", action="store_true", help="run the verify twins instead of measuring")
    p.add_argument("--quick", action="store_true", help="1 round of 1 s on 64 MiB files (verify: 16 MiB)")
    p.add_argument("--strict", action="store_true", help="exit 1 when a ratio that must be shown is missed or missing")

    g = p.add_argument_group("how")
    g.add_argument("--rounds", type=at_least_one, help="interleaved rounds [3]")
    g.add_argument("--runtime", type=at_least_one, metavar="SECONDS", help="of one sample, after a ramp of 0.5 s [3]")
    g.add_argument("--size", type=size, help="of each file [512M]")
    g.add_argument("--verify-size", type=size, help="region that a verify twin writes and checks [64M]")
    g.add_argument("--dir", type=pathlib.Path, help="folder on the file system to use [a tmpfs of its own]")
    g.add_argument("--seed", type=int, default=1, help="of the order within a round [1]")
    g.add_argument("--cached-everywhere", action="store_true", help="wrapdisk-cache takes part in every job")
    g.add_argument("--cache-size", type=size, help="of wrapdisk-cache [64M; verify: a quarter of the region]")

    g = p.add_argument_group("programs")
    g.add_argument("--wrapdisk", type=pathlib.Path, default=TARGET / "release/wrapdisk", help="[target/release/wrapdisk]")
    g.add_argument("--null", type=pathlib.Path, default=TARGET / "release/examples/nullfuse",
                   help="null FUSE: PROGRAM BACKING MOUNTFILE [target/release/examples/nullfuse]")
    g.add_argument("--null-args", type=str.split, default=[], metavar="ARGS", help="more arguments for it")
    g.add_argument("--lab", type=pathlib.Path, help="a second null FUSE, also run with XTS=1")
    g.add_argument("--lab-args", type=str.split, default=["threads=4", "dio=1"], metavar="ARGS",
                   help="its arguments ['threads=4 dio=1']")

    g = p.add_argument_group("results (always printed as Markdown too)")
    for option in ("markdown", "json", "chart"):
        g.add_argument(f"--{option}", type=pathlib.Path, metavar="FILE")
    return p


def main(argv=None):
    p = parser()
    options = p.parse_args(argv)
    try:
        # The namespace has other working folders and a process of its own: say everything in absolute paths.
        for name in ("dir", "wrapdisk", "null", "lab", "markdown", "json", "chart"):
            if getattr(options, name):
                setattr(options, name, getattr(options, name).resolve())
        _defaults(options)
        tools = peers.Tools(TARGET / "bench-peers")
        everyone = list(contestants.everyone(options, tools))
        if options.list:
            return _list(everyone)
        chosen, plan = _plan(p, options, everyone)
        if options.install:
            tools.install()
        fio.require()
        for contestant in chosen:
            contestant.check()
        return sandbox.run(lambda base: _guarded(lambda: _session(base, options, chosen, plan)))
    except BenchError as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _guarded(work):
    """Runs in the process that holds the mounts: its errors must end there, in words."""
    try:
        return work()
    except BenchError as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130


def _defaults(options):
    quick, options.cache_given = options.quick, options.cache_size is not None
    options.rounds = options.rounds or (1 if quick else 3)
    options.runtime = options.runtime or (1 if quick else 3)
    options.verify_size = options.verify_size or (16 if quick else 64) * MIB
    options.size = options.size or (64 if quick or options.verify else 512) * MIB
    for name, least in (("size", jobs.HOT_REGION), ("verify_size", 4 * MIB)):
        if getattr(options, name) < least or getattr(options, name) % MIB:
            raise BenchError(f"--{name.replace('_', '-')}: found {getattr(options, name)} bytes, "
                             f"allowed whole MiB from {least // MIB}M")
    if options.verify:
        options.size = max(options.size, options.verify_size)
    if not options.cache_given:
        # A cache smaller than the region evicts while it is written: that is where it would go wrong.
        options.cache_size = options.verify_size // 4 if options.verify else 64 * MIB


def _list(everyone):
    print("contestants:")
    for c in everyone:
        print(f"  {c.name:<16} {c.title}{'  (peer)' if c.is_peer else ''}")
    print("jobs:")
    for job in jobs.JOBS:
        print(f"  {job.name:<24} {job.rw}, {job.bs // 1024} KiB, depth {job.depth} x {job.jobs}, "
              f"{'direct' if job.direct else 'buffered'}, {job.unit}")
    return 0


def _matches(p, text, everyone):
    """(contestant names, job names) that a comma-separated list means; a word that means nothing is a usage error."""
    whom, what = set(), set()
    for word in filter(None, (w.strip() for w in text.split(","))):
        named = {c.name for c in everyone if fnmatch.fnmatch(c.name, word) or (word == "peers" and c.is_peer)}
        # A contestant's whole name is that contestant; else it may be the beginning of jobs.
        of_jobs = set() if named else {j.name for j in jobs.matching(word)}
        if not named and not of_jobs:
            p.error(f"{word!r} is neither a contestant nor a job; contestants: {', '.join(c.name for c in everyone)}; "
                    "jobs: --list")
        whom |= named
        what |= of_jobs
    return whom, what


def _plan(p, options, everyone):
    whom, what = {c.name for c in everyone}, {j.name for j in jobs.JOBS}
    if options.only:
        some, of = _matches(p, ",".join(options.only), everyone)
        whom, what = some or whom, of or what
    if options.without:
        some, of = _matches(p, ",".join(options.without), everyone)
        whom, what = whom - some, what - of
    everywhere = options.cached_everywhere or options.verify
    plan = []
    for job in jobs.JOBS:
        names = [c.name for c in everyone if c.name in whom
                 and (options.verify or job.wants(c.name, everywhere))]
        if job.name in what and names:
            plan.append((job, names))
    needed = {n for _, names in plan for n in names}
    if not plan:
        p.error("nothing left to run: --only and --without exclude each other's rest")
    return [c for c in everyone if c.name in needed], plan


def _session(base, options, chosen, plan):
    # A quarter more than the files: headers, authentication tags, and the probe files.
    need = len(chosen) * options.size * 5 // 4 + 64 * MIB
    place = sandbox.Place(base, options.dir, need)
    files = {}
    try:
        engine = fio.pick_engine(place.data)
        if options.verify:
            verify.prove_oracle(place.data, engine)
        meta = _meta(options, chosen, place, engine)
        for contestant in chosen:
            print(f"[start] {contestant.name}", file=sys.stderr, flush=True)
            files[contestant.name] = measure.prepare(contestant, place, options.size)
        if options.verify:
            return _verified(options, chosen, verify.run(plan, files, options.verify_size, engine), meta)
        rows = list(measure.run(plan, files, options, engine))
        meta["load_after"] = f"{os.getloadavg()[0]:.2f}"
        return _measured(options, report.Results(chosen, rows), meta)
    finally:
        # In reverse, each on its own: one that does not stop must not keep the others.
        for contestant in reversed(chosen):
            try:
                contestant.stop()
            except Exception as e:  # noqa: BLE001
                print(f"bench: stop {contestant.name}: {e}", file=sys.stderr)
        place.close()


def _meta(options, chosen, place, engine):
    cpu = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    return {
        "cpu": cpu, "cpus": os.cpu_count(), "kernel": platform.release(), "fs": place.fs_type(), "engine": engine,
        "size": options.size, "rounds": options.rounds, "runtime": options.runtime, "seed": options.seed,
        "cache_size": options.cache_size, "fio": fio.version(), "versions": {c.name: c.version() for c in chosen},
        "load_before": f"{os.getloadavg()[0]:.2f}",
    }


def _measured(options, results, meta):
    text = report.markdown(results, meta)
    print(text)
    _write(options.markdown, lambda: text)
    _write(options.json, lambda: json.dumps(report.as_json(results, meta), indent=1) + "\n")
    _write(options.chart, lambda: chart.svg(results, meta))
    ours = results.errors_of(("wrapdisk", "wrapdisk-cache"))
    if ours:
        print(f"bench: wrapdisk failed: {ours[0]}", file=sys.stderr)
        return 1
    missed = [c for c in results.checks() if c.verdict != "PASS"]
    return 1 if options.strict and missed else 0


def _verified(options, chosen, verdicts, meta):
    text = report.verify_markdown(verdicts, [c.name for c in chosen])
    print(text)
    _write(options.markdown, lambda: text)
    _write(options.json, lambda: json.dumps({"meta": meta, "verify": verdicts}, indent=1) + "\n")
    ours = [f"{n}, {job}: {e}" for job, row in verdicts.items() for n, e in row.items()
            if e and n in ("wrapdisk", "wrapdisk-cache")]
    if ours:
        print(f"bench: wrapdisk failed verification: {ours[0]}", file=sys.stderr)
    return 1 if ours else 0


def _write(path, make):
    if path is None:
        return
    try:
        path.write_text(make())
    except (OSError, ValueError) as e:
        raise BenchError(f"write {path}: {e}") from e
    print(f"wrote {path}", file=sys.stderr)

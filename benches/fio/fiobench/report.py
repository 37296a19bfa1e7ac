"""Medians, ratios, the list "what it must show"; Markdown and JSON.

A ratio is taken within each round and the median over the rounds is shown: it may differ a little from the quotient
of two medians, and is worth more, because its two halves were measured close together.
"""

import dataclasses
import statistics

from . import jobs

DIRECT_4K_D16 = ("4k-randread-d16", "4k-randwrite-d16", "4k-mix-d16")
DIRECT_1M = ("1m-read-d1", "1m-write-d1", "1m-read-d16", "1m-write-d16")
HOT = "hot-4k-randread-d16"

# (jobs, contestant, against, at least)
MUST_SHOW = (
    (DIRECT_4K_D16, "wrapdisk", "best peer", 3.0),
    (DIRECT_4K_D16, "wrapdisk", "null", 0.75),
    (DIRECT_1M, "wrapdisk", "best peer", 2.0),
    (DIRECT_1M, "wrapdisk", "null", 0.7),
    ((HOT,), "wrapdisk-cache", "null", 0.95),
)


@dataclasses.dataclass
class Ratio:
    median: float
    low: float
    high: float


@dataclasses.dataclass
class Check:
    job: str
    contestant: str
    against: str
    limit: float
    ratio: Ratio | None

    @property
    def verdict(self):
        if self.ratio is None:
            return "not measured"
        return "PASS" if self.ratio.median >= self.limit else "MISS"


class Results:
    """Samples by job, contestant and round."""

    def __init__(self, contestants, rows):
        self.titles = {c.name: c.title for c in contestants}
        self.peers = [c.name for c in contestants if c.is_peer]
        self.rows = rows
        self._units = {j.name: j.unit for j in jobs.JOBS}
        measured = {row[1] for row in rows}
        self.jobs = [j.name for j in jobs.JOBS if j.name in measured]
        self._values = {}
        for number, job, name, sample in rows:
            value = sample.value(self._units[job])
            if value is not None:
                self._values.setdefault((job, name), {})[number] = value

    def median(self, job, name):
        values = self._values.get((job, name))
        return statistics.median(values.values()) if values else None

    def failed(self, job, name):
        """Whether any sample ended with an error."""
        return any(s.error for _, j, n, s in self.rows if (j, n) == (job, name))

    def ratio(self, job, name, against):
        above, below = self._values.get((job, name), {}), self._values.get((job, against), {})
        each = [above[n] / below[n] for n in above if below.get(n)]
        return Ratio(statistics.median(each), min(each), max(each)) if each else None

    def best_peer(self, job):
        """The peer with the highest median of this job, or None."""
        found = [(self.median(job, p), p) for p in self.peers if self.median(job, p) is not None]
        return max(found)[1] if found else None

    def unit(self, job):
        return self._units[job]

    def checks(self):
        for names, who, against, limit in MUST_SHOW:
            for job in names:
                other = self.best_peer(job) if against == "best peer" else against
                ratio = self.ratio(job, who, other) if other and not self.failed(job, who) else None
                shown = f"best peer ({other})" if against == "best peer" and other else against
                yield Check(job, who, shown, limit, ratio)

    def errors_of(self, names):
        """Distinct "contestant, job: message" of these contestants."""
        return list(dict.fromkeys(f"{n}, {j}: {s.error}" for _, j, n, s in self.rows if s.error and n in names))


def figure(value):
    """158k, 4.61k, 930: three digits are all that such a figure carries."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value / 1000:.3g}k" if value < 99_950 else f"{value / 1000:.0f}k"
    return f"{value:.3g}"


def table(head, rows):
    """A Markdown table, padded so that it reads in a terminal too; the first column is left-aligned."""
    cells = [head, *rows]
    widths = [max(len(str(row[i])) for row in cells) for i in range(len(head))]

    def line(row):
        first, *rest = [str(c) for c in row]
        return "| " + " | ".join([first.ljust(widths[0])] + [c.rjust(w) for c, w in zip(rest, widths[1:])]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def markdown(results, meta):
    names = list(results.titles)
    parts = [_conditions(meta), "### Median of the rounds (4 KiB jobs: IOPS, 1 MiB jobs: MiB/s)", _medians(results, names)]
    if "null" in names:
        parts += ["### Ratios (contestant / null FUSE, and wrapdisk / best peer)", _ratios(results, names)]
    parts += ["### What it must show", _checks(results)]
    if meta["rounds"] < 3:
        parts.append("Fewer than 3 rounds: these verdicts are noise, not evidence.")
    errors = results.errors_of(names)
    if errors:
        parts += ["### Errors", "\n".join(f"- {e}" for e in errors)]
    return "\n\n".join(parts) + "\n"


def _conditions(meta):
    versions = ", ".join(v for v in meta["versions"].values() if v)
    return (
        f"{meta['cpus']} x {meta['cpu']}, Linux {meta['kernel']}, files of {meta['size'] >> 20} MiB on {meta['fs']}, "
        f"{meta['rounds']} interleaved round{'s' if meta['rounds'] != 1 else ''} of {meta['runtime']} s per job, "
        f"{meta['engine']}, load average {meta['load_before']} before and {meta['load_after']} after.\n\n"
        f"Versions: {meta['fio']}; {versions}.\n\n"
        "Direct I/O unless the name says `buffered`; d16x2 is two jobs of depth 16; mix is 70 % reads. Buffered reads "
        "are cold (each byte once), `reread` and `hot` read 32 MiB again and again."
    )


def _medians(results, names):
    def cell(job, name):
        value = results.median(job, name)
        return "error" if results.failed(job, name) else figure(value)

    return table(["job", *names], [[job, *(cell(job, n) for n in names)] for job in results.jobs])


def _ratios(results, names):
    def cell(job, name, against):
        ratio = against and results.ratio(job, name, against)
        return f"{ratio.median:.2f}" if ratio else "-"

    others = [n for n in names if n != "null"]
    rows = []
    for job in results.jobs:
        best = results.best_peer(job)
        beside = f"{cell(job, 'wrapdisk', best)} ({best})" if best and "wrapdisk" in names else "-"
        rows.append([job, *(cell(job, n, "null") for n in others), beside])
    return table(["job", *others, "wrapdisk / best peer"], rows)


def _checks(results):
    rows = []
    for check in results.checks():
        r = check.ratio
        found = f"{r.median:.2f} ({r.low:.2f} to {r.high:.2f})" if r else "-"
        rows.append([check.job, f"{check.contestant} / {check.against}", f">= {check.limit:g}", found, check.verdict])
    return table(["job", "ratio", "must be", "found (range of rounds)", "verdict"], rows)


def verify_markdown(verdicts, names):
    """The table of the verify twins, then what fio said where it failed."""

    def cell(row, name):
        return "-" if name not in row else "ok" if row[name] is None else "FAIL"

    parts = ["### Verify twins (fio --verify=crc32c, same shapes)",
             table(["job", *names], [[job, *(cell(row, n) for n in names)] for job, row in verdicts.items()])]
    errors = [f"- {n}, {job}: {e}" for job, row in verdicts.items() for n, e in row.items() if e]
    if errors:
        parts += ["### Failures", "\n".join(errors)]
    return "\n\n".join(parts) + "\n"


def as_json(results, meta):
    return {
        "meta": meta,
        "samples": [
            {"round": number, "job": job, "contestant": name, "unit": results.unit(job), **dataclasses.asdict(sample)}
            for number, job, name, sample in results.rows
        ],
        "medians": {job: {n: results.median(job, n) for n in results.titles} for job in results.jobs},
        "ratios_to_null": {
            job: {n: r.median for n in results.titles if (r := results.ratio(job, n, "null"))} for job in results.jobs
        },
        "must_show": [
            {"job": c.job, "contestant": c.contestant, "against": c.against, "limit": c.limit,
             "ratio": dataclasses.asdict(c.ratio) if c.ratio else None, "verdict": c.verdict}
            for c in results.checks()
        ],
    }

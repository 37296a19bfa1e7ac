#!/usr/bin/env python3
"""Does the harness count, judge and select as it says? `python3 -B benches/fio/test_fiobench.py`; no root, no FUSE."""

import json
import pathlib
import sys
import unittest
import xml.dom.minidom

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from fiobench import chart, cli, contestants, fio, jobs, report  # noqa: E402

JOB = "4k-randread-d16"
META = {"cpus": 2, "cpu": "a <CPU> & more", "kernel": "6", "fs": "tmpfs", "rounds": 3, "size": 1 << 29, "runtime": 3,
        "engine": "io_uring", "load_before": "0", "load_after": "0", "fio": "fio-3", "versions": {}}


def everyone():
    return list(contestants.everyone(cli.parser().parse_args([]), None))


def results(**values):
    """Results of one job: contestant -> figure of each round (None: the sample failed)."""
    names = {k.replace("_", "-"): v for k, v in values.items()}
    rows = [(n + 1, JOB, name, fio.Sample(iops=v) if v is not None else fio.Sample(error="EIO"))
            for name, each in names.items() for n, v in enumerate(each)]
    return report.Results([c for c in everyone() if c.name in names], rows)


def verdicts(found):
    return {c.against.split(" (")[0]: c.verdict for c in found.checks() if c.job == JOB}


class Ratios(unittest.TestCase):
    def test_a_ratio_is_taken_within_a_round(self):
        # The machine halves its speed twice: the ratio of medians would be 1, every round says 0.8.
        found = results(null=[100, 50, 25], wrapdisk=[80, 40, 20])
        self.assertAlmostEqual(found.ratio(JOB, "wrapdisk", "null").median, 0.8)

    def test_a_round_without_both_figures_does_not_count(self):
        found = results(null=[100, None, 100], wrapdisk=[80, 1, None])
        ratio = found.ratio(JOB, "wrapdisk", "null")
        self.assertEqual((ratio.median, ratio.low, ratio.high), (0.8, 0.8, 0.8))

    def test_the_best_peer_is_a_peer(self):
        self.assertEqual(results(raw=[900], null=[500], qemu=[30], securefs=[40]).best_peer(JOB), "securefs")
        self.assertIsNone(results(raw=[900], null=[500]).best_peer(JOB))


class Verdicts(unittest.TestCase):
    def test_at_the_limit_it_passes(self):
        found = results(null=[100] * 3, wrapdisk=[75] * 3, qemu=[25] * 3)
        self.assertEqual(verdicts(found), {"best peer": "PASS", "null": "PASS"})

    def test_below_the_limit_it_misses(self):
        found = results(null=[100] * 3, wrapdisk=[74] * 3, qemu=[25] * 3)
        self.assertEqual(verdicts(found), {"best peer": "MISS", "null": "MISS"})

    def test_an_error_of_ours_is_never_a_pass(self):
        found = results(null=[100] * 3, wrapdisk=[99, None, 99], qemu=[25] * 3)
        self.assertEqual(verdicts(found), {"best peer": "not measured", "null": "not measured"})
        self.assertEqual(found.errors_of(("wrapdisk",)), [f"wrapdisk, {JOB}: EIO"])


class FioAnswers(unittest.TestCase):
    GOOD = {"jobs": [{"error": 0,
                      "read": {"total_ios": 3, "iops": 7, "bw_bytes": 1 << 20, "clat_ns": {"mean": 2000}},
                      "write": {"total_ios": 1, "iops": 1, "bw_bytes": 1 << 20, "clat_ns": {"mean": 9}}}]}

    def test_a_mix_counts_both_directions(self):
        sample = fio.parse(0, "note: something\n" + json.dumps(self.GOOD) + "\n", "")
        self.assertEqual((sample.iops, sample.mib_s, sample.mean_us, sample.error), (8, 2, 2, None))

    def test_a_failure_is_never_a_figure(self):
        bad = json.loads(json.dumps(self.GOOD))
        bad["jobs"][0]["error"] = 84
        idle = json.loads(json.dumps(self.GOOD))
        idle["jobs"][0]["read"]["total_ios"] = idle["jobs"][0]["write"]["total_ios"] = 0
        for code, said in ((1, self.GOOD), (0, bad), (0, idle)):
            sample = fio.parse(code, json.dumps(said), "")
            self.assertTrue(sample.error)
            self.assertIsNone(sample.value("IOPS"))
        self.assertIn("no JSON", fio.parse(1, "", "").error)

    def test_the_message_says_why(self):
        said = "verify: bad magic header 0, wanted acca at file x offset 4096\nfio: pid=1, err=84"
        self.assertIn("bad magic", fio.parse(1, "", said).error)


class Selection(unittest.TestCase):
    def plan(self, *argv):
        options = cli.parser().parse_args(argv)
        cli._defaults(options)
        chosen, plan = cli._plan(cli.parser(), options, everyone())
        return [c.name for c in chosen], {job.name: names for job, names in plan}

    def test_a_whole_name_is_not_a_beginning(self):
        self.assertEqual(list(self.plan("--only", "4k-randread-d1,null")[1]), ["4k-randread-d1"])
        self.assertEqual(len(self.plan("--only", "4k-randread")[1]), 3)

    def test_the_cached_one_runs_where_something_is_read_twice_or_checked(self):
        self.assertEqual([j for j, names in self.plan()[1].items() if "wrapdisk-cache" in names],
                         ["hot-4k-randread-d16"])
        self.assertTrue(all("wrapdisk-cache" in names for names in self.plan("--verify")[1].values()))

    def test_every_job_of_the_promise_exists(self):
        known = {j.name for j in jobs.JOBS}
        self.assertTrue({job for names, *_ in report.MUST_SHOW for job in names} <= known)

    def test_an_unknown_word_is_a_usage_error(self):
        with self.assertRaises(SystemExit) as end, open("/dev/null", "w") as sys.stderr:
            self.plan("--only", "wrapdsik")
        sys.stderr = sys.__stderr__
        self.assertEqual(end.exception.code, 2)


class Twins(unittest.TestCase):
    def test_every_twin_checks_and_keeps_the_depth(self):
        for job in jobs.JOBS:
            last = jobs.verify_steps(job, "f", 1 << 26, "io_uring")[-1]
            self.assertIn("--verify=crc32c", last)
            self.assertIn(f"--rw={job.rw}", last)
            self.assertIn(f"--iodepth={job.depth if job.direct else 16}", last)

    def test_two_jobs_never_check_what_the_other_writes(self):
        for job in (j for j in jobs.JOBS if j.jobs == 2):
            args = jobs.verify_steps(job, "f", 1 << 26, "io_uring")[-1]
            self.assertIn(f"--size={1 << 25}", args)
            self.assertIn(f"--offset_increment={1 << 25}", args)


class Output(unittest.TestCase):
    def test_the_chart_is_well_formed_and_shows_ours(self):
        text = chart.svg(results(raw=[900], null=[100], wrapdisk=[80], qemu=[25]), META)
        xml.dom.minidom.parseString(text)
        self.assertIn("wrapdisk, cache off", text)

    def test_a_chart_without_a_ceiling_is_refused(self):
        with self.assertRaises(ValueError):
            chart.svg(results(wrapdisk=[80]), META)

    def test_figures_keep_three_digits(self):
        shown = [report.figure(v) for v in (None, 12.345, 930, 4610, 99_940, 158_400)]
        self.assertEqual(shown, ["-", "12.3", "930", "4.61k", "99.9k", "158k"])


if __name__ == "__main__":
    unittest.main()

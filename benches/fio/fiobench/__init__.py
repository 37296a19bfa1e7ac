"""The fio harness: same jobs, same file system, one interleaved run, medians and ratios.

cli          options, the order of events, exit codes
sandbox      private namespaces and folders; nothing stays mounted, whatever ends the run
jobs         what is measured, and the fio options of a job and of its verify twin
fio          one fio process: start, time limit, parse
contestants  who is measured: start, presented file, stop
peers        find (and with --install fetch) the programs of others
measure      fill, interleave, collect samples
verify       the verify twins, and the proof that the oracle can fail
report       medians, ratios, the list "what it must show", Markdown and JSON
chart        the SVG

Only the standard library. Absolute figures do not travel between machines; ratios from one run do, a little.
"""


class BenchError(Exception):
    """Something a person can act on; printed without a traceback."""

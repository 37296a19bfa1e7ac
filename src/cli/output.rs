//! What commands print: text for people, JSON for programs. A closed pipe ends the output, not the program in an error.

use std::io::Write;

use crate::error::{Error, ErrorKind, Result};

/// The option of every command that lists or tells.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct OutputArgs {
    /// How to print the result
    #[arg(long, short, value_enum, default_value = "human", value_name = "FORMAT")]
    output: Format,
}

impl OutputArgs {
    pub(super) fn json(self) -> bool {
        self.output == Format::Json
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Columns and sentences.
    Human,
    /// One JSON document.
    Json,
}

/// Prints one line (or several).
pub(super) fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("write to standard output", e)),
        _ => Ok(()),
    }
}

/// Prints a JSON document.
pub(super) fn json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::new(ErrorKind::Other, "encode").caused_by(e))?;
    line(&text)
}

/// Says something to the person at the terminal that is not the command's result. Nobody listening is no failure
/// (`eprintln` would panic).
pub(super) fn note(text: &str) {
    say(&format!("{text}\n"));
}

/// A question or a line that goes on.
pub(super) fn say(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// Columns wide enough for what they hold, separated by two spaces.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// `name: value` lines, aligned.
pub(super) fn fields(fields: &[(&str, String)]) -> Result<()> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    for (name, value) in fields {
        line(&format!("{:<width$} {value}", format!("{name}:")))?;
    }
    Ok(())
}

/// RFC 3339 in UTC, to the second.
pub(super) fn time(unix: i64) -> String {
    jiff::Timestamp::from_second(unix).map_or_else(|_| unix.to_string(), |t| t.to_string())
}

/// Progress of a long job, on a terminal only: one line that is written over.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    shown: Option<u64>,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        let tty = std::io::IsTerminal::is_terminal(&std::io::stderr());
        Self { what, total, shown: tty.then_some(u64::MAX) }
    }

    pub(super) fn at(&mut self, done: u64) {
        let percent = done.saturating_mul(100).checked_div(self.total).unwrap_or(100);
        if self.shown.is_some_and(|shown| shown != percent) {
            self.shown = Some(percent);
            let end = if done >= self.total { "\n" } else { "" };
            say(&format!("\r{}: {percent:3} %{end}", self.what));
        }
    }
}

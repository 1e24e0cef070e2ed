//! Logging: to standard error, coloured on a terminal, filtered by level and module.
//!
//! Lines are written by a layer of our own, because two things have to hold for every line,
//! whatever logs it: what is in it obeys no terminal and forges no other line ([`crate::plain`]),
//! and nobody outside can fill the log (`log/limit.rs`). Not limited are debug and trace, which are
//! asked for, and what an operator causes by signals and at the start (`OPERATOR`).

mod limit;

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::plain::plain;
use limit::{Limiter, Line};

/// The module that logs what an operator did.
const OPERATOR: &str = "switchd::vswitchd";

/// Reads a filter such as `info` or `info,vswitch=debug`.
///
/// # Errors
/// One line when it is not one.
pub fn filter(text: &str) -> Result<Targets, String> {
    let wrong = || format!("'{text}' is not a log filter such as info or info,vswitch=debug");
    // A bare word that is no level would silently become the name of a module, and everything else fall silent.
    let stray = |part: &str| part.is_empty() || !part.contains('=') && LevelFilter::from_str(part).is_err();
    if text.split(',').any(stray) {
        return Err(wrong());
    }
    Targets::from_str(text).map_err(|error| format!("{}: {error}", wrong()))
}

/// Logs to standard error from now on.
#[must_use]
pub fn start(filter: Targets) -> Log {
    let log = Log(Arc::new(Shared {
        limiter: Mutex::default(),
        news: Notify::new(),
        colours: io::stderr().is_terminal(),
        // Under systemd the journal has the time.
        times: std::env::var_os("JOURNAL_STREAM").is_none(),
        out: |line| drop(io::Write::write_all(&mut io::stderr(), line)),
    }));
    tracing_subscriber::registry().with(log.clone()).with(filter).init();
    log
}

/// The log. Clones are the same.
#[derive(Clone, Debug)]
pub struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limiter: Mutex<Limiter>,
    /// A count is due some time.
    news: Notify,
    colours: bool,
    times: bool,
    out: fn(&[u8]),
}

impl Log {
    /// Tells how many lines were left out, when that is due, for as long as it is polled.
    pub async fn tell(self) {
        loop {
            let due = self.limiter().due();
            match due {
                None => self.0.news.notified().await,
                // Or something else is due before.
                Some(due) => tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => self.write_all(Some(Instant::now())),
                    () = self.0.news.notified() => {}
                },
            }
        }
    }

    /// Tells all that was left out and not told; for the end.
    pub fn flush(&self) {
        self.write_all(None);
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.0.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, due: Option<Instant>) {
        let lines = self.limiter().take_due(due);
        lines.iter().for_each(|line| self.write(line));
    }

    fn write(&self, line: &Line) {
        let text = format_line(line, self.0.colours, self.0.times);
        // Whole lines, so that those of other threads are before or behind.
        (self.0.out)(text.as_bytes());
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let meta = event.metadata();
        let mut words = Words::default();
        event.record(&mut words);
        let (level, text) = (*meta.level(), words.text());
        let line = if level > Level::INFO || meta.target() == OPERATOR {
            Some(Line { level, text, left_out: 0 })
        } else {
            let mut limiter = self.limiter();
            let line = limiter.ask(meta.callsite(), &words.object(), level, &text, Instant::now());
            drop(limiter);
            if line.is_none() {
                self.0.news.notify_one();
            }
            line
        };
        if let Some(line) = line {
            self.write(&line);
        }
    }
}

/// What an event says.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
    /// The first of the fields that name objects.
    named: Option<String>,
}

/// Fields that name an object.
const OBJECTS: [&str; 4] = ["port", "bridge", "worker", "socket"];

impl Words {
    fn text(&self) -> String {
        let space = if self.message.is_empty() { "" } else { " " };
        // `fields` begin with a space each.
        plain(format!("{}{space}{}", self.message, self.fields.trim_start()).trim_end()).into_owned()
    }

    /// What it is about: a field that names an object, else the first text in quotes, else what
    /// comes before a colon.
    fn object(&self) -> String {
        if let Some(named) = &self.named {
            return named.clone();
        }
        let quoted = self.message.split('\'').nth(1);
        let object = quoted.or_else(|| Some(self.message.split_once(": ")?.0));
        object.unwrap_or_default().to_owned()
    }

    fn add(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
            return;
        }
        // Writing to a String cannot fail.
        let _ = write!(self.fields, " {}={value}", field.name());
        if self.named.is_none() && OBJECTS.contains(&field.name()) {
            self.named = Some(value);
        }
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

/// The line as tracing's own layer would write it.
fn format_line(line: &Line, colours: bool, times: bool) -> String {
    let mut text = String::new();
    let (dim, colour, reset) = match (colours, line.level) {
        (false, _) => ("", "", ""),
        (true, Level::ERROR) => ("\x1b[2m", "\x1b[31m", "\x1b[0m"),
        (true, Level::WARN) => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
        (true, Level::INFO) => ("\x1b[2m", "\x1b[32m", "\x1b[0m"),
        (true, Level::DEBUG) => ("\x1b[2m", "\x1b[34m", "\x1b[0m"),
        (true, _) => ("\x1b[2m", "\x1b[35m", "\x1b[0m"),
    };
    if times {
        text.push_str(dim);
        // Writing to a String cannot fail, and a clock before 1970 is no reason to be silent.
        let _ = SystemTime.format_time(&mut Writer::new(&mut text));
        text.push_str(reset);
        text.push(' ');
    }
    let _ = write!(text, "{colour}{:>5}{reset} {}", line.level.as_str(), line.text);
    match line.left_out {
        0 => {}
        1 => text.push_str(" (1 line like it left out)"),
        many => {
            let _ = write!(text, " ({many} lines like it left out)");
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        static WRITTEN: RefCell<String> = const { RefCell::new(String::new()) };
    }

    /// What is written while `what` logs.
    fn written(what: impl FnOnce(&Log)) -> String {
        WRITTEN.take();
        let out = |line: &[u8]| WRITTEN.with_borrow_mut(|all| all.push_str(&String::from_utf8_lossy(line)));
        let log = Log(Arc::new(Shared {
            limiter: Mutex::default(),
            news: Notify::new(),
            colours: false,
            times: false,
            out,
        }));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log.clone()), || what(&log));
        WRITTEN.take()
    }

    #[test]
    fn a_slip_of_the_finger_is_not_a_module() {
        for good in ["info", "off", "warn,vswitch=debug", "vswitch::sys=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["inof", "", "info,", "!!", "info,vswitch=loud", "vswitch"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_are_as_they_were() {
        let text = written(|_| {
            tracing::info!(added = 1, name = "x", "configured");
            tracing::warn!(error = %io::Error::other("no"), "cannot accept");
            tracing::error!("plain");
            tracing::info!(only = true);
        });
        assert_eq!(
            text,
            " INFO configured added=1 name=\"x\"\n WARN cannot accept error=no\nERROR plain\n INFO only=true\n"
        );
        let line = Line { level: Level::WARN, text: "x".into(), left_out: 2 };
        assert_eq!(format_line(&line, true, false), "\x1b[33m WARN\x1b[0m x (2 lines like it left out)\n");
        let timed = format_line(&line, false, true);
        assert!(timed.contains("Z  WARN x ("), "{timed}");
    }

    #[test]
    fn nothing_in_a_line_obeys_a_terminal_or_forges_another() {
        let name = "p\u{1b}[2J\n ERROR forged\u{202e}";
        let text = written(|_| {
            tracing::warn!("port '{name}' is down");
            tracing::warn!(port = %name, "is down");
        });
        assert_eq!(text.lines().count(), 2, "{text:?}");
        assert!(!text.contains(['\u{1b}', '\u{202e}']) && text.contains("p\\u{1b}[2J\\n ERROR"), "{text:?}");
    }

    #[test]
    fn lines_about_each_object_are_bounded_and_counted() {
        let text = written(|log| {
            for flap in 0..100 {
                for port in ["p0", "p1"] {
                    tracing::info!("port '{port}' is {}", if flap % 2 == 0 { "down" } else { "up" });
                }
            }
            for _ in 0..100 {
                tracing::debug!("asked for");
                tracing::info!(target: OPERATOR, "reloaded");
            }
            log.flush();
        });
        for port in ["p0", "p1"] {
            let lines: Vec<_> = text.lines().filter(|line| line.contains(port)).collect();
            assert_eq!(lines.len(), 11, "{lines:?}");
            assert_eq!(lines[10], format!(" INFO port '{port}' is up (90 lines like it left out)"));
        }
        assert_eq!(text.matches("asked for").count(), 100);
        assert_eq!(text.matches("reloaded").count(), 100);
    }

    #[test]
    fn what_a_line_is_about() {
        let object = |message: &str| Words { message: message.into(), ..Words::default() }.object();
        for (message, about) in [
            ("port 'p' is up", "p"),
            ("/run/guest: a front end is here", "/run/guest"),
            ("ready", ""),
            ("odd ' quote", " quote"),
        ] {
            assert_eq!(object(message), about);
        }
    }
}

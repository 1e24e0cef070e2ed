//! Logging: to standard error, coloured on a terminal, filtered by level and module.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Reads a filter such as `info` or `info,vswitch=debug`.
///
/// # Errors
/// One line when it is not one.
pub fn filter(text: &str) -> Result<Targets, String> {
    Targets::from_str(text).map_err(|error| {
        format!("'{text}' is not a log filter such as info or info,vswitch=debug: {error}")
    })
}

/// Logs to standard error from now on.
pub fn start(filter: Targets) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // Under systemd the journal has the time.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        tracing_subscriber::registry().with(lines.without_time()).with(filter).init();
    } else {
        tracing_subscriber::registry().with(lines).with(filter).init();
    }
}

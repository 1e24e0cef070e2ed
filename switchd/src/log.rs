//! Logging: to standard error, coloured on a terminal, filtered by level and module.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_not_a_module() {
        for good in ["info", "off", "warn,vswitch=debug", "vswitch::sys=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["inof", "", "info,", "!!", "info,vswitch=loud", "vswitch"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}

//! `--key value` arguments: a few subcommands with a handful of values do not need a parser crate.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

/// The arguments after the subcommand.
#[derive(Debug)]
pub(crate) struct Args(BTreeMap<String, String>);

impl Args {
    /// Reads pairs of `--key value` to the end.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
        let mut pairs = BTreeMap::new();
        while let Some(word) = words.next() {
            let key = word.strip_prefix("--").ok_or_else(|| format!("expected --KEY, found {word:?}"))?;
            let value = words.next().ok_or_else(|| format!("--{key} needs a value"))?;
            pairs.insert(key.to_owned(), value);
        }
        Ok(Args(pairs))
    }

    /// The value of a key that must be there.
    pub(crate) fn need<T: FromStr>(&self, key: &str) -> Result<T, String> {
        let text = self.0.get(key).ok_or_else(|| format!("--{key} is missing"))?;
        text.parse().map_err(|_| format!("--{key}: cannot read {text:?}"))
    }

    /// The value of a key, or what holds without it.
    pub(crate) fn or<T: FromStr>(&self, key: &str, default: T) -> Result<T, String> {
        if self.0.contains_key(key) { self.need(key) } else { Ok(default) }
    }

    /// A duration in seconds, fractions allowed.
    pub(crate) fn seconds(&self, key: &str, default: Option<f64>) -> Result<Duration, String> {
        let secs = match default {
            Some(default) => self.or(key, default)?,
            None => self.need(key)?,
        };
        Duration::try_from_secs_f64(secs).map_err(|e| format!("--{key}: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Args, String> {
        Args::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn pairs_are_read_and_defaults_hold() {
        let args = parse("--dev e0 --seconds 0.5").unwrap();
        assert_eq!(args.need::<String>("dev").unwrap(), "e0");
        assert_eq!(args.or("size", 60usize).unwrap(), 60);
        assert_eq!(args.seconds("seconds", None).unwrap(), Duration::from_millis(500));
    }

    #[test]
    fn mistakes_name_the_key() {
        assert_eq!(parse("dev e0").unwrap_err(), "expected --KEY, found \"dev\"");
        assert_eq!(parse("--dev").unwrap_err(), "--dev needs a value");
        let args = parse("--seconds -1 --size x").unwrap();
        assert!(args.seconds("seconds", None).unwrap_err().starts_with("--seconds: "));
        assert_eq!(args.need::<usize>("size").unwrap_err(), "--size: cannot read \"x\"");
        assert_eq!(args.need::<usize>("batch").unwrap_err(), "--batch is missing");
    }
}

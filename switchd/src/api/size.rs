//! Numbers of bytes, written `4G`: what memory takes.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A number of bytes, with `K`, `M`, `G` or `T` for powers of 1024; in JSON and TOML also a plain number.
#[derive(ToSchema, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[schema(value_type = String, examples("4G"))]
pub struct Size(pub u64);

/// Letters of the powers of 1024, from the first on.
const UNITS: [char; 4] = ['K', 'M', 'G', 'T'];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{}' is not a number of bytes such as 512M, 4G or 1T", text.escape_debug());
        let upper = text.trim().to_ascii_uppercase();
        // As QEMU, systemd and people write them.
        let number = upper.strip_suffix('B').unwrap_or(&upper);
        let number = number.strip_suffix('I').unwrap_or(number);
        let (number, shift) =
            match number.chars().last().and_then(|last| UNITS.iter().position(|&u| u == last)) {
                Some(power) => (&number[..number.len() - 1], 10 * (power + 1)),
                None if number.len() == upper.len() => (number, 0),
                None => return Err(wrong()),
            };
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let bytes: u64 = number.parse().map_err(|_| wrong())?;
        bytes.checked_mul(1 << shift).filter(|&bytes| bytes > 0).map(Size).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let powers = (1..=UNITS.len()).rev();
        match powers
            .map(|power| (power, 10 * power))
            .find(|(_, shift)| self.0.trailing_zeros() as usize >= *shift)
        {
            Some((power, shift)) => write!(f, "{}{}", self.0 >> shift, UNITS[power - 1]),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumber;
        impl Visitor<'_> for TextOrNumber {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, such as \"4G\" or 4294967296")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                bytes.to_string().parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                bytes.to_string().parse().map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(TextOrNumber)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, written) in [
            ("4096", 4096, "4K"),
            ("1", 1, "1"),
            ("512M", 512 << 20, "512M"),
            ("4g", 4 << 30, "4G"),
            ("4GiB", 4 << 30, "4G"),
            ("4GB", 4 << 30, "4G"),
            ("2T", 2 << 40, "2T"),
            ("1536M", 1536 << 20, "1536M"),
            ("4097", 4097, "4097"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, written), "{text}");
            assert_eq!(written.parse::<Size>().unwrap(), size);
        }
        for wrong in [
            "",
            "0",
            "0G",
            "G",
            "-1",
            "+1",
            "1.5G",
            "1P",
            "4Q",
            "4B",
            "4iB",
            "1 G",
            "99999999T",
            "18446744073709551616",
        ] {
            let error = wrong.parse::<Size>().unwrap_err();
            assert!(error.contains("such as 512M"), "{wrong}: {error}");
        }
        let json = |text: &str| serde_json::from_str::<Size>(text);
        assert_eq!(json("4096").unwrap(), json("\"4K\"").unwrap());
        assert!(json("-1").is_err() && json("true").is_err() && json("0").is_err());
    }
}

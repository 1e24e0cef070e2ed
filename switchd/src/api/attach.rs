//! Rules of the attach socket as asked for.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::check_name;

/// The word that stands for every bridge.
pub const ALL_BRIDGES: &str = "all";
/// Longest user or group name, in bytes (LOGIN_NAME_MAX).
const ACCOUNT_MAX_BYTES: usize = 255;

/// Who may attach guests, and to which bridge. With user and group, both must hold.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct AttachRule {
    /// A user, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub user: Option<Account>,
    /// A group, by name or number; the process has to be in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub group: Option<Account>,
    /// A bridge, or 'all'.
    pub bridge: String,
}

impl AttachRule {
    /// Refuses what can allow nobody.
    ///
    /// # Errors
    /// One line that names what is missing or impossible.
    pub fn check(&self) -> Result<(), String> {
        if self.user.is_none() && self.group.is_none() {
            return Err("an attach rule needs 'user' or 'group': say who may attach".to_owned());
        }
        if self.bridge == ALL_BRIDGES { Ok(()) } else { check_name("bridge", &self.bridge) }
    }
}

/// A user or a group; written as a name, or as a number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Account {
    /// Its number.
    Number(u32),
    /// Its name.
    Name(String),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Account::Number(number) => number.fmt(f),
            Account::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(number) = text.parse() {
            return Ok(Account::Number(number));
        }
        let fine = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, ':' | '"' | '\\' | ',');
        if text.is_empty() || text.len() > ACCOUNT_MAX_BYTES || !text.chars().all(fine) {
            return Err(format!("'{}' is not the name of a user or group", text.escape_debug()));
        }
        Ok(Account::Name(text.to_owned()))
    }
}

impl Serialize for Account {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Account::Number(number) => serializer.serialize_u32(*number),
            Account::Name(name) => serializer.serialize_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNumber;
        impl Visitor<'_> for NameOrNumber {
            type Value = Account;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a user or group, by name or number")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Account, E> {
                u32::try_from(number).map(Account::Number).map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Account, E> {
                u32::try_from(number).map(Account::Number).map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Account, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(NameOrNumber)
    }
}

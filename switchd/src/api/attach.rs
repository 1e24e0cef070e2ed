//! Rules of the attach socket: as asked for, and what is used by them.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;
use vswitch::topology::PORTS_MAX;

use super::check_name;

/// The word that stands for every bridge.
pub const ALL_BRIDGES: &str = "all";
/// Ports that guests of users other than root may have attached at a time, whatever rules say. The other half of the switch's ports is left
/// to the operator.
pub const ATTACHED_MAX: u32 = 2048;
const _: () = assert!(ATTACHED_MAX as usize * 2 <= PORTS_MAX);
/// Guests of a rule, where it does not say.
const PORTS_DEFAULT: u32 = 256;
/// Guests of one user by a rule, where it does not say.
const USER_PORTS_DEFAULT: u32 = 64;
/// Ring memory of a rule's guests, where it does not say; a guest's port takes less than 2 MiB.
const MEMORY_DEFAULT_MIB: u32 = 512;
/// 1 TiB.
const MEMORY_MAX_MIB: u32 = 1 << 20;
/// Longest user or group name, in bytes (LOGIN_NAME_MAX).
const ACCOUNT_MAX_BYTES: usize = 255;

/// Who may attach guests, and to which bridge. With user and group, both must hold.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug, Default)]
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
    /// Guests that may be attached by this rule at a time, of all users together; 256 where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports_max: Option<u32>,
    /// Guests that one user may have attached by this rule at a time; 64, or `ports_max` if that is less, where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_ports_max: Option<u32>,
    /// Ring memory that the guests of this rule may take together, in MiB; 512 where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_mib: Option<u32>,
}

impl AttachRule {
    /// Guests that may be attached by it at a time.
    #[must_use]
    pub fn ports_max(&self) -> u32 {
        self.ports_max.unwrap_or(PORTS_DEFAULT)
    }

    /// Guests that one user may have attached by it at a time.
    #[must_use]
    pub fn user_ports_max(&self) -> u32 {
        self.user_ports_max.unwrap_or(USER_PORTS_DEFAULT.min(self.ports_max()))
    }

    /// Ring memory that its guests may take together, in MiB.
    #[must_use]
    pub fn memory_max_mib(&self) -> u32 {
        self.memory_max_mib.unwrap_or(MEMORY_DEFAULT_MIB)
    }

    /// Refuses what can allow nobody.
    ///
    /// # Errors
    /// One line that names what is missing or impossible.
    pub fn check(&self) -> Result<(), String> {
        if self.user.is_none() && self.group.is_none() {
            return Err("an attach rule needs 'user' or 'group': say who may attach".to_owned());
        }
        let limits = [
            ("ports_max", self.ports_max, ATTACHED_MAX),
            ("user_ports_max", self.user_ports_max, self.ports_max().min(ATTACHED_MAX)),
            ("memory_max_mib", self.memory_max_mib, MEMORY_MAX_MIB),
        ];
        for (name, limit, most) in limits {
            if let Some(limit) = limit.filter(|limit| !(1..=most).contains(limit)) {
                return Err(format!("an attach rule's {name} is a number from 1 to {most}, not {limit}"));
            }
        }
        if self.bridge == ALL_BRIDGES { Ok(()) } else { check_name("bridge", &self.bridge) }
    }
}

impl fmt::Display for AttachRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[[attach]]")?;
        let accounts = [("user", &self.user), ("group", &self.group)];
        for (what, account) in accounts.into_iter().filter_map(|(what, one)| Some((what, one.as_ref()?))) {
            write!(f, " {what} = {account}")?;
        }
        write!(f, " bridge = {}", self.bridge)
    }
}

/// A rule of the attach socket and what is used by it.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct AttachInfo {
    /// The user, by name or number; null is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub user: Option<Account>,
    /// The group, by name or number; null is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub group: Option<Account>,
    /// The bridge, or 'all'.
    pub bridge: String,
    /// Guests that are attached by it.
    pub ports: u32,
    /// Guests that may be, of all users together.
    pub ports_max: u32,
    /// Guests that one user may have attached by it.
    pub user_ports_max: u32,
    /// Ring memory that its guests take, in bytes.
    pub memory_bytes: u64,
    /// Ring memory that they may take, in MiB.
    pub memory_max_mib: u32,
}

impl AttachInfo {
    /// Of a rule, and what is used by it.
    #[must_use]
    pub fn new(rule: &AttachRule, ports: u32, memory_bytes: u64) -> AttachInfo {
        AttachInfo {
            user: rule.user.clone(),
            group: rule.group.clone(),
            bridge: rule.bridge.clone(),
            ports,
            ports_max: rule.ports_max(),
            user_ports_max: rule.user_ports_max(),
            memory_bytes,
            memory_max_mib: rule.memory_max_mib(),
        }
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

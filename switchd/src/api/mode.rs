//! What `mode` takes: permissions of a socket's file, or how a macvtap device shares its lower interface.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vswitch::spec::MacvtapMode;

/// Permissions of a socket's file, in octal.
#[derive(Serialize, Deserialize, ToSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, examples("660"))]
pub struct FileMode(pub u32);

impl FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && !text.starts_with('+'));
        mode.map(FileMode).ok_or_else(|| format!("'{text}' is no mode of a file in octal, such as 660"))
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03o}", self.0)
    }
}

impl TryFrom<String> for FileMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<FileMode> for String {
    fn from(mode: FileMode) -> String {
        mode.to_string()
    }
}

/// A mode as it was given; which kind fits is the port's type to say.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(try_from = "String", into = "String")]
pub enum ModeChoice {
    /// Of a socket's file.
    File(FileMode),
    /// Of a macvtap device.
    Macvtap(MacvtapMode),
}

impl FromStr for ModeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use MacvtapMode::{Bridge, Passthru, Private, Vepa};
        if let Some(mode) = [Passthru, Bridge, Vepa, Private].into_iter().find(|mode| mode.name() == text) {
            return Ok(ModeChoice::Macvtap(mode));
        }
        text.parse()
            .map(ModeChoice::File)
            .map_err(|error| format!("{error}, nor a macvtap's: passthru, bridge, vepa, private"))
    }
}

impl fmt::Display for ModeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModeChoice::File(mode) => mode.fmt(f),
            ModeChoice::Macvtap(mode) => f.write_str(mode.name()),
        }
    }
}

impl TryFrom<String> for ModeChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ModeChoice> for String {
    fn from(mode: ModeChoice) -> String {
        mode.to_string()
    }
}

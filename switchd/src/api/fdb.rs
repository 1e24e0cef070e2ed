//! Stations as asked for.

use std::net::IpAddr;

use clap::Args;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use vswitch::switch::FdbFilter;

use super::values::{Mac, StationVlan};

/// A static entry to add.
#[derive(Args, Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct FdbAdd {
    /// Address of the station
    #[arg(value_name = "MAC")]
    pub mac: Mac,
    /// Port it is behind
    #[arg(long, value_name = "P")]
    pub port: String,
    /// Its VLAN, on a filtering bridge [default: the port's own]
    #[arg(long, value_name = "VID")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<StationVlan>,
    /// Remote of a tunnel port that it is behind [default: its only one]
    #[arg(long, value_name = "IP")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub remote: Option<IpAddr>,
}

impl FdbAdd {
    /// Refuses addresses that no station has.
    ///
    /// # Errors
    /// One line.
    pub fn check(&self) -> Result<(), String> {
        if self.mac.0.is_station() {
            return Ok(());
        }
        Err(format!(
            "{} is not a station's address: give an individual one such as 02:00:00:00:00:01",
            self.mac
        ))
    }
}

/// Which entry of a bridge.
#[derive(Args, Serialize, Deserialize, IntoParams, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FdbKey {
    /// Bridge that knows the station
    #[arg(long, value_name = "BR")]
    pub bridge: String,
    /// Only in this VLAN
    #[arg(long, value_name = "VID")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<u16>)]
    pub vlan: Option<StationVlan>,
}

/// Which entries; what is not given does not matter.
#[derive(Args, Serialize, Deserialize, IntoParams, ToSchema, Clone, PartialEq, Eq, Debug, Default)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FdbSelect {
    /// Only of this bridge
    #[arg(long, value_name = "BR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Only behind this port
    #[arg(long, value_name = "P")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Only in this VLAN
    #[arg(long, value_name = "VID")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<u16>)]
    pub vlan: Option<StationVlan>,
}

impl FdbSelect {
    /// As the data plane wants it.
    #[must_use]
    pub fn to_filter(&self) -> FdbFilter {
        FdbFilter { bridge: self.bridge.clone(), port: self.port.clone(), vlan: self.vlan.map(|vlan| vlan.0) }
    }
}

//! Neighbours as asked for.

use std::net::IpAddr;

use clap::Args;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use vswitch::bridge::neighbours::is_host;
use vswitch::spec::BridgeSpec;
use vswitch::switch::{NeighFilter, NeighSpec};

use super::values::{Mac, StationVlan};

/// A static neighbour to add.
#[derive(Args, Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct NeighAdd {
    /// The address
    #[arg(value_name = "IP")]
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Station that has it
    #[arg(long, value_name = "MAC")]
    pub mac: Mac,
    /// Bridge it is on
    #[arg(long, value_name = "BR")]
    pub bridge: String,
    /// Its VLAN, on a filtering bridge [default: the bridge's default PVID]
    #[arg(long, value_name = "VID")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<StationVlan>,
    /// It is an IPv6 router, and is to be announced as one
    #[arg(long)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub router: bool,
}

impl NeighAdd {
    /// As the data plane wants it, on `bridge`.
    ///
    /// # Errors
    /// One line when an address or the VLAN is impossible.
    pub fn to_spec(&self, bridge: &BridgeSpec) -> Result<NeighSpec, String> {
        let NeighAdd { address, mac: Mac(mac), router, .. } = *self;
        if !is_host(address) {
            return Err(format!("{address} is no address of one host: give one such as 10.0.0.1 or fd00::1"));
        }
        if !mac.is_station() {
            return Err(format!(
                "{mac} is not a station's address: give an individual one such as 02:00:00:00:00:01"
            ));
        }
        if router && address.is_ipv4() {
            return Err(format!("{address}: 'router' is for IPv6 addresses: leave it out"));
        }
        let vlan = match (bridge.vlan_filtering, self.vlan.map(|vlan| vlan.0)) {
            (false, None | Some(0)) => 0,
            (false, Some(vlan)) => {
                return Err(format!(
                    "VLAN {vlan}: bridge '{0}' does not filter VLANs: leave the VLAN out, or 'bridge set {0} --vlan-filtering on'",
                    bridge.name
                ));
            }
            (true, None) => bridge.default_pvid.get(),
            (true, Some(0)) => {
                return Err(format!("bridge '{}' filters VLANs: say in which one {address} is", bridge.name));
            }
            (true, Some(vlan)) => vlan,
        };
        Ok(NeighSpec { bridge: bridge.name.clone(), vlan, address, mac, router })
    }
}

/// Which neighbour of a bridge.
#[derive(Args, Serialize, Deserialize, IntoParams, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct NeighKey {
    /// Bridge that knows it
    #[arg(long, value_name = "BR")]
    pub bridge: String,
    /// Only in this VLAN
    #[arg(long, value_name = "VID")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<u16>)]
    pub vlan: Option<StationVlan>,
}

/// Which neighbours; what is not given does not matter.
#[derive(Args, Serialize, Deserialize, IntoParams, ToSchema, Clone, PartialEq, Eq, Debug, Default)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct NeighSelect {
    /// Only of this bridge
    #[arg(long, value_name = "BR")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Only in this VLAN
    #[arg(long, value_name = "VID")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<u16>)]
    pub vlan: Option<StationVlan>,
}

impl NeighSelect {
    /// As the data plane wants it.
    #[must_use]
    pub fn to_filter(&self) -> NeighFilter {
        NeighFilter { bridge: self.bridge.clone(), vlan: self.vlan.map(|vlan| vlan.0) }
    }
}

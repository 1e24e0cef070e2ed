//! Bridges as asked for.

use clap::Args;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vswitch::spec::BridgeSpec;

use super::check_name;
use super::values::{Vid, on_off};

/// A request with the bridge options, after the fields that are its own.
macro_rules! with_bridge_options {
    ($(#[$meta:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$meta])*
        #[derive(Args, Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug, Default)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($own)*
            /// Seconds until a silent station is forgotten [default: 300]; 0 learns nothing and floods everything
            #[arg(long = "ageing", visible_alias = "ageing-secs", value_name = "SECS")]
            #[serde(alias = "ageing", skip_serializing_if = "Option::is_none")]
            pub ageing_secs: Option<u32>,
            /// Most stations the bridge remembers [default: 65536]
            #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
            #[serde(skip_serializing_if = "Option::is_none")]
            #[schema(minimum = 1)]
            pub fdb_max: Option<u32>,
            /// Whether the bridge looks at VLAN tags (IEEE 802.1Q) or treats them as payload [default: off]
            #[arg(long, value_name = "on|off", value_parser = on_off(), hide_possible_values = true)]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub vlan_filtering: Option<bool>,
            /// VLAN of ports without VLAN options, when filtering [default: 1]
            #[arg(long, value_name = "VID")]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub default_pvid: Option<Vid>,
        }

        impl $name {
            /// What is given here, and the rest as it was in `spec`.
            fn over(&self, spec: BridgeSpec) -> Result<BridgeSpec, String> {
                if self.fdb_max == Some(0) {
                    return Err(format!("bridge '{}': fdb_max must be at least 1", spec.name));
                }
                Ok(BridgeSpec {
                    ageing_secs: self.ageing_secs.unwrap_or(spec.ageing_secs),
                    fdb_max: self.fdb_max.unwrap_or(spec.fdb_max),
                    vlan_filtering: self.vlan_filtering.unwrap_or(spec.vlan_filtering),
                    default_pvid: self.default_pvid.map_or(spec.default_pvid, |vid| vid.0),
                    name: spec.name,
                })
            }
        }
    };
}

with_bridge_options! {
    /// A bridge to add.
    pub struct BridgeAdd {
        /// Name of the bridge
        #[arg(value_name = "BR")]
        pub name: String,
    }
}

with_bridge_options! {
    /// Settings of a bridge to change; what is not given stays as it is.
    pub struct BridgeSet {}
}

impl BridgeAdd {
    /// As the data plane wants it, with defaults for what is not given.
    ///
    /// # Errors
    /// One line when the name or an option is impossible.
    pub fn to_spec(&self) -> Result<BridgeSpec, String> {
        check_name("bridge", &self.name)?;
        self.over(BridgeSpec::new(&self.name))
    }
}

impl BridgeSet {
    /// `spec` with the given settings changed.
    ///
    /// # Errors
    /// One line when an option is impossible.
    pub fn change(&self, spec: &BridgeSpec) -> Result<BridgeSpec, String> {
        self.over(spec.clone())
    }

    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == BridgeSet::default()
    }
}

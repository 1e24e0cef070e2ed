//! Macvtap ports: their options, and how they are shown.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vswitch::spec::{MacvtapLower, MacvtapMode, MacvtapSpec, Netns};

use super::check_known_ifname;
use super::mode::ModeChoice;
use super::port::PortAdd;

/// How a macvtap device was made.
#[derive(Serialize, Deserialize, ToSchema, Clone, PartialEq, Eq, Debug)]
pub struct MacvtapInfo {
    /// The interface below.
    pub lower: String,
    /// `passthru`, `bridge`, `vepa` or `private`.
    pub mode: String,
}

impl MacvtapInfo {
    /// Of a device that vswitchd made.
    #[must_use]
    pub fn new(spec: &MacvtapSpec) -> Option<MacvtapInfo> {
        let lower = spec.lower.as_ref()?;
        Some(MacvtapInfo { lower: lower.ifname.clone(), mode: lower.mode.name().to_owned() })
    }
}

/// The device that is asked for.
pub(super) fn spec(
    asked: &PortAdd,
    owner: &str,
    ifname: String,
    netns: Option<Netns>,
) -> Result<MacvtapSpec, String> {
    asked.check_device(owner)?;
    let mode = match asked.mode {
        Some(ModeChoice::Macvtap(mode)) => Some(mode),
        Some(ModeChoice::File(mode)) => {
            return Err(format!(
                "{owner}: '{mode}' is a file's mode: give passthru, bridge, vepa or private"
            ));
        }
        None => None,
    };
    let Some(below) = &asked.lower else {
        let made = [("mode", mode.is_some()), ("mac", asked.mac.is_some()), ("mtu", asked.mtu.is_some())];
        if let Some((option, _)) = made.iter().find(|(_, given)| *given) {
            return Err(format!(
                "{owner}: '{option}' is for a macvtap device that vswitchd makes: give 'lower' too, or leave it out"
            ));
        }
        return Ok(MacvtapSpec { ifname, netns, lower: None, queues: asked.queues });
    };
    check_known_ifname(owner, below)?;
    if *below == ifname {
        return Err(format!(
            "{owner}: 'lower' is the interface below and 'ifname' the macvtap device's: give two names"
        ));
    }
    let mode = mode.unwrap_or_default();
    if mode == MacvtapMode::Passthru && asked.mac.is_some() {
        return Err(format!(
            "{owner}: with mode passthru the address is that of '{below}': leave 'mac' out, or give another mode"
        ));
    }
    let lower = MacvtapLower { ifname: below.clone(), mode, mac: asked.mac.map(|mac| mac.0), mtu: asked.mtu };
    Ok(MacvtapSpec { ifname, netns, lower: Some(lower), queues: asked.queues })
}

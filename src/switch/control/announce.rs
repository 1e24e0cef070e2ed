//! Announcements of the interfaces that the switch makes, when they come up or get another MAC address.
//!
//! Neighbours keep what they know of an address for half a minute and more. The first announcement goes out when workers
//! have the port; more follow for the neighbours whose port comes later in the same configuration, for addresses
//! that IPv6 checks for duplicates first (two seconds at most), and against loss.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::Control;
use crate::addr::PortId;
use crate::switch::namespaces::Place;
use crate::sys::announce::{Announcer, announce, is_announced};
use crate::sys::netlink::Netlink;

/// When, from the moment that there is something to announce.
const AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];

/// Ports whose interface has yet to be announced: since when, and how often it was.
#[derive(Debug, Default)]
pub(super) struct Announcements(BTreeMap<PortId, (Instant, usize)>);

impl Announcements {
    /// From now on, from the beginning.
    pub(super) fn begin(&mut self, id: PortId) {
        self.0.insert(id, (Instant::now(), 0));
    }

    /// Those whose turn it is.
    fn due(&mut self, now: Instant) -> Vec<PortId> {
        let mut due = Vec::new();
        for (&id, (since, done)) in &mut self.0 {
            if AFTER.get(*done).is_some_and(|after| *since + *after <= now) {
                *done += 1;
                due.push(id);
            }
        }
        self.0.retain(|_, (_, done)| *done < AFTER.len());
        due
    }
}

impl Control {
    /// Sends the announcements that are due. To be called several times a second.
    pub(in crate::switch) fn announce(&mut self) {
        let mut places: HashMap<Place, Vec<Announcer>> = HashMap::new();
        for id in self.announcements.due(Instant::now()) {
            let Some(port) = self.ports.get(&id).filter(|port| port.open) else { continue };
            let (Some((place, _)), Some(link)) = (port.interface(), &port.link) else { continue };
            let Some(mac) = link.mac.filter(|_| link.up) else { continue };
            let (ifindex, ifname, addresses) = (link.index, link.name.clone(), Vec::new());
            places.entry(place).or_default().push(Announcer { ifindex, ifname, mac, addresses });
        }
        for (place, mut announcers) in places {
            let Some(netlink) = self.namespaces.get(&place) else { continue };
            // That they cannot be sent is no reason to complain: neighbours find out later.
            if let Err(error) = send(&place, netlink, &mut announcers) {
                tracing::debug!("{error}");
            }
        }
    }
}

/// Fills in the IP addresses, and sends what there is then.
fn send(place: &Place, netlink: &Netlink, announcers: &mut Vec<Announcer>) -> crate::sys::Result<()> {
    let in_use = netlink.addresses_in_use()?;
    let mut of: HashMap<u32, Vec<_>> = HashMap::new();
    for (ifindex, address) in in_use.into_iter().filter(|(_, address)| is_announced(*address)) {
        of.entry(ifindex).or_default().push(address);
    }
    announcers.retain_mut(|announcer| {
        announcer.addresses = of.remove(&announcer.ifindex).unwrap_or_default();
        !announcer.addresses.is_empty()
    });
    if announcers.is_empty() {
        return Ok(());
    }
    // To enter one's own needs a right, too.
    let elsewhere = place.as_ref().map(|_| netlink.netns()).transpose()?;
    announce(elsewhere.as_ref().map(AsFd::as_fd), announcers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_announced_three_times() {
        let mut announcements = Announcements::default();
        let (one, two) = (PortId(1), PortId(2));
        announcements.begin(one);
        let began = Instant::now();
        let mut due = |millis| announcements.due(began + Duration::from_millis(millis));
        assert_eq!([due(0), due(900), due(1100), due(2900)], [vec![one], vec![], vec![one], vec![]]);
        assert_eq!([due(3100), due(9000)], [vec![one], vec![]]);
        assert!(announcements.0.is_empty());
        announcements.begin(two);
        announcements.begin(one);
        assert_eq!(announcements.due(Instant::now()), [one, two]);
        announcements.begin(one);
        assert_eq!(announcements.due(Instant::now()), [one], "from the beginning");
    }
}

//! Neighbours: which station has which address, as workers hear it and operators say it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Bridge, Control, Port, is};
use crate::addr::{MacAddr, PortId, VlanId};
use crate::bridge::fdb::Key;
use crate::bridge::neighbours::{Heard, NEIGHBOURS_MAX, Neighbour, Neighbours, Place, follow, is_host};
use crate::spec::{BridgeSpec, PortKind};
use crate::status::{FdbState, NeighbourEntry};
use crate::switch::{Error, NeighFilter, NeighSpec};

/// Least time between two topologies that are published for the sake of what was heard.
const BETWEEN_NEWS: Duration = Duration::from_millis(100);

/// What workers do not know yet.
#[derive(Debug, Default)]
pub(super) struct News {
    waiting: bool,
    /// When there were some last.
    published: Option<Instant>,
}

impl Control {
    pub(in crate::switch) fn neighbours(&self, filter: &NeighFilter) -> Result<Vec<NeighbourEntry>, Error> {
        filter.bridge.as_deref().map(|name| self.bridge(name)).transpose()?;
        let now = self.crew.now();
        let mut entries = Vec::new();
        for bridge in self.bridges.iter().filter(|bridge| is(&filter.bridge, &bridge.spec.name)) {
            let wanted = |(place, _): &(&Place, _)| filter.vlan.is_none_or(|vid| vid == place.0);
            entries.extend(bridge.neighbours.iter().filter(wanted).map(|(&(vlan, address), known)| {
                NeighbourEntry {
                    address,
                    mac: known.mac,
                    vlan,
                    bridge: bridge.spec.name.clone(),
                    state: if known.is_fixed() { FdbState::Static } else { FdbState::Dynamic },
                    router: known.router,
                    age_secs: known.age_secs(now),
                }
            }));
        }
        entries.sort_by(|a, b| (&a.bridge, a.vlan, a.address).cmp(&(&b.bridge, b.vlan, b.address)));
        Ok(entries)
    }

    pub(in crate::switch) fn neigh_add(&mut self, spec: &NeighSpec) -> Result<(), Error> {
        let index = self.bridge(&spec.bridge)?;
        check(spec, &self.bridges[index].spec)?;
        let neighbour = Neighbour::new(spec.mac, None, Some(spec.router), self.crew.now());
        if !self.change(index).insert((spec.vlan, spec.address), neighbour) {
            return Err(Error::Invalid(format!(
                "bridge '{}' has {NEIGHBOURS_MAX} static neighbours, its most; remove one first",
                spec.bridge
            )));
        }
        self.tell_workers(index);
        Ok(())
    }

    pub(in crate::switch) fn neigh_del(
        &mut self,
        address: IpAddr,
        bridge: &str,
        vlan: Option<u16>,
    ) -> Result<(), Error> {
        let index = self.bridge(bridge)?;
        let wanted = |place: &Place| place.1 == address && vlan.is_none_or(|vid| vid == place.0);
        if self.forget_neighbours(index, |place, _| wanted(place)) == 0 {
            let place = vlan.map_or(String::new(), |vid| format!(" in VLAN {vid}"));
            return Err(Error::NotFound(format!(
                "bridge '{bridge}' does not know neighbour {address}{place}; see: vswitchctl neigh show --bridge {bridge}"
            )));
        }
        self.tell_workers(index);
        Ok(())
    }

    pub(in crate::switch) fn neigh_flush(&mut self, filter: &NeighFilter) -> Result<usize, Error> {
        filter.bridge.as_deref().map(|name| self.bridge(name)).transpose()?;
        let mut gone = 0;
        for index in 0..self.bridges.len() {
            if is(&filter.bridge, &self.bridges[index].spec.name) {
                let wanted = |place: &Place| filter.vlan.is_none_or(|vid| vid == place.0);
                gone += self.forget_neighbours(index, |place, known| !known.is_fixed() && wanted(place));
                self.tell_workers(index);
            }
        }
        Ok(gone)
    }

    /// A worker heard of a neighbour. It is believed if its station is where the frame came from; a configured one stays.
    pub(in crate::switch) fn hear(&mut self, heard: &Heard) {
        let Heard { port, vid, address, mac, router } = *heard;
        let Some(known) = self.ports.get(&self.device(port).0) else { return };
        let Ok(index) = self.bridge(&known.spec.bridge) else { return };
        if self.station(index, mac, vid) != Some(port) || self.bridges[index].spec.ageing_secs == 0 {
            return;
        }
        let place = (vid, address);
        let before = self.bridges[index].neighbours.get(&place);
        if before.is_some_and(|known| known.is_fixed()) {
            return;
        }
        // What a guarded tunnel says of a local station's address is not believed: workers see to that, but may not know the address yet.
        let local = |mac| {
            let station = self.station(index, mac, vid).and_then(|port| self.ports.get(&self.device(port).0));
            station.is_some_and(|port| !matches!(port.spec.kind, PortKind::Tunnel(_)))
        };
        let guarded =
            self.ports.get(&self.device(port).0).is_some_and(|port| port.spec.settings.tunnel.guard_local);
        if guarded && before.is_some_and(|known| known.mac != mac && local(known.mac)) {
            return;
        }
        // Where the frame does not say whether it is a router, what was known of the same station stays.
        let router = router.or(before.filter(|known| known.mac == mac).and_then(|known| known.router));
        let heard_by = Some(self.device(port).0);
        if before.is_some_and(|known| (known.mac, known.router, known.heard_by) == (mac, router, heard_by)) {
            return;
        }
        let neighbour = Neighbour::new(mac, heard_by, router, self.crew.now());
        if !self.change(index).insert(place, neighbour) {
            // No room: better nothing than what is not true any more.
            self.change(index).forget(|known, _| *known == place);
        }
        self.news.waiting = true;
    }

    /// Has workers know what was heard, and who was met: at once, or a little later with what comes until then.
    pub(in crate::switch) fn publish_news(&mut self) {
        let due = self.news.published.is_none_or(|published| published.elapsed() >= BETWEEN_NEWS);
        if due && (self.news.waiting || self.tunnels.has_met()) {
            self.news = News { waiting: false, published: Some(Instant::now()) };
            let ways = self.welcome();
            drop(self.publish(&[], ways));
        }
    }

    /// Forgets neighbours not heard for their bridge's ageing time, and those whose station is forgotten. To be called each
    /// second.
    pub(in crate::switch) fn expire_neighbours(&mut self) {
        let now = self.crew.now();
        for index in 0..self.bridges.len() {
            let Bridge { spec, neighbours, .. } = &self.bridges[index];
            let old: HashSet<Place> = neighbours
                .iter()
                .filter(|(place, known)| {
                    !known.is_fixed()
                        && (known.age_secs(now) >= spec.ageing_secs
                            || self.station(index, known.mac, place.0).is_none())
                })
                .map(|(&place, _)| place)
                .collect();
            if !old.is_empty() {
                self.forget_neighbours(index, |place, _| old.contains(place));
                self.news.waiting = true;
            }
        }
    }

    /// A bridge's neighbours when its settings are `then`; `None` if they stay what they are. Configured ones are in the default
    /// VLAN if they were so before.
    ///
    /// # Errors
    /// Two would be one.
    pub(super) fn neighbours_under(
        &self,
        index: usize,
        then: &BridgeSpec,
    ) -> Result<Option<Neighbours>, Error> {
        let Bridge { spec: now, neighbours, .. } = &self.bridges[index];
        if (now.vlan_filtering, now.default_pvid) == (then.vlan_filtering, then.default_pvid) {
            return Ok(None);
        }
        let moved = neighbours.moved(|&(vid, address)| (follow(vid, now, then), address));
        for (&(vid, address), known) in neighbours.iter().filter(|(_, known)| known.is_fixed()) {
            let there = moved.get(&(follow(vid, now, then), address));
            if there.is_none_or(|there| (there.mac, there.router) != (known.mac, known.router)) {
                return Err(Error::Invalid(format!(
                    "bridge '{0}': two static neighbours {address} would be in one VLAN; remove one first with: \
                     vswitchctl neigh del {address} --bridge {0} --vlan {vid}",
                    now.name
                )));
            }
        }
        Ok(Some(moved))
    }

    /// The port that a bridge's forwarding database knows a station behind, or a tunnel's remote.
    fn station(&self, index: usize, mac: MacAddr, vid: u16) -> Option<PortId> {
        let fdb = &self.bridges[index].fdb;
        let key = Key::new(mac, vid);
        fdb.lookup(key, fdb.hash(key)).map(|entry| entry.port)
    }

    /// A bridge's neighbours, to be changed; workers see it with the next topology.
    fn change(&mut self, index: usize) -> &mut Neighbours {
        Arc::make_mut(&mut self.bridges[index].neighbours)
    }

    /// Has workers run on a bridge's neighbours as they are now; most bridges' do not interest them.
    fn tell_workers(&mut self, index: usize) {
        let suppresses = |(_, port): (_, &Port)| port.open && port.spec.settings.tunnel.neigh_suppress;
        if self.members(&self.bridges[index].spec.name).any(suppresses) {
            drop(self.publish(&[], Vec::new()));
        }
    }

    fn forget_neighbours(&mut self, index: usize, forget: impl Fn(&Place, &Neighbour) -> bool) -> usize {
        if !self.bridges[index].neighbours.iter().any(|(place, known)| forget(place, known)) {
            return 0;
        }
        self.change(index).forget(forget)
    }
}

/// Refuses a neighbour that cannot be.
fn check(spec: &NeighSpec, bridge: &BridgeSpec) -> Result<(), Error> {
    let NeighSpec { vlan, address, mac, router, .. } = *spec;
    let wrong = if !is_host(address) {
        format!("{address} is no address of one host")
    } else if !mac.is_station() {
        format!("'{mac}' is not a station's address: it is a group address or zero")
    } else if router && address.is_ipv4() {
        format!("{address}: 'router' is for IPv6 addresses; leave it out")
    } else if !bridge.vlan_filtering && vlan != 0 {
        format!(
            "bridge '{}' does not filter VLANs, so its neighbours have none; leave --vlan out",
            bridge.name
        )
    } else if bridge.vlan_filtering && VlanId::new(vlan).is_none() {
        format!("bridge '{}' filters VLANs; say in which one {address} is with --vlan", bridge.name)
    } else {
        return Ok(());
    };
    Err(Error::Invalid(wrong))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::fdb::Tick;
    use crate::switch::{Crew, Namespaces, Options};

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn address(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    /// Two ports on a bridge; `MAC` is behind the first.
    fn control() -> (Control, [PortId; 2]) {
        use crate::offload::Capabilities;
        use crate::port::mem::MemPort;
        use crate::spec::{PortKind, PortSettings, PortSpec};
        let poll = mio::Poll::new().expect("epoll");
        let bell = Arc::new(mio::Waker::new(poll.registry(), mio::Token(0)).expect("eventfd"));
        let (events, _inbox) = crossbeam_channel::unbounded();
        let options = Options { workers: Some(1), ..Options::default() };
        let crew = Crew::start(&options, &events, &bell).expect("a worker");
        let mut control = Control::new(crew, Namespaces::new(poll.registry().try_clone().expect("epoll")));
        control.add_bridge(BridgeSpec::new("br0")).expect("added");
        let ports = ["p0", "p1"].map(|name| {
            let memory = MemPort::new(Capabilities::default(), 1500).expect("an eventfd");
            let (bridge, settings) = ("br0".into(), PortSettings::default());
            let spec = PortSpec { name: name.into(), bridge, kind: PortKind::Mem(memory), settings };
            control.add_port(spec, crate::switch::Missing::Refuse).expect("added");
            control.port(name).expect("there")
        });
        let key = Key::new(MAC, 0);
        control.bridges[0].fdb.learn(key, control.bridges[0].fdb.hash(key), ports[0], Tick(0));
        (control, ports)
    }

    fn known(control: &Control) -> Vec<(IpAddr, MacAddr, FdbState, Option<bool>)> {
        let all = control.neighbours(&NeighFilter::default()).expect("any");
        all.into_iter().map(|known| (known.address, known.mac, known.state, known.router)).collect()
    }

    #[test]
    fn who_is_heard_is_believed_where_his_station_is() {
        let (mut control, ports) = control();
        let heard = |port, n, mac, router| Heard { port, vid: 0, address: address(n), mac, router };
        control.hear(&heard(ports[1], 1, MAC, Some(false)));
        control.hear(&heard(ports[0], 1, OTHER, Some(false)));
        assert_eq!(
            (known(&control), control.news.waiting),
            (vec![], false),
            "not where it is, not known at all"
        );
        control.hear(&heard(ports[0], 1, MAC, Some(true)));
        control.hear(&heard(ports[0], 1, MAC, None));
        assert_eq!(known(&control), [(address(1), MAC, FdbState::Dynamic, Some(true))]);
        assert!(control.news.waiting);
        control.publish_news();
        assert!(!control.news.waiting && control.crew.generation() == control.generation);

        let mut spec =
            NeighSpec { bridge: "br0".into(), vlan: 0, address: address(1), mac: OTHER, router: false };
        control.neigh_add(&spec).expect("a learned one is replaced");
        control.hear(&heard(ports[0], 1, MAC, Some(false)));
        assert_eq!(known(&control), [(address(1), OTHER, FdbState::Static, Some(false))]);

        // A neighbour is forgotten with its station, unless it is configured.
        control.hear(&heard(ports[0], 2, MAC, None));
        control.expire_neighbours();
        assert_eq!(known(&control).len(), 2);
        control.fdb_flush(&crate::switch::FdbFilter::default()).expect("flushed");
        control.expire_neighbours();
        assert_eq!(known(&control), [(address(1), OTHER, FdbState::Static, Some(false))]);

        for (vlan, n, mac) in [(7, 3, MAC), (0, 3, MacAddr::BROADCAST), (0, 255, MAC)] {
            (spec.vlan, spec.mac) = (vlan, mac);
            spec.address = if n == 255 { [255; 4].into() } else { address(n) };
            assert!(matches!(control.neigh_add(&spec), Err(Error::Invalid(_))), "{spec:?}");
        }
        control.close_all();
        control.crew.stop();
    }

    #[test]
    fn configured_neighbours_follow_the_bridges_mode() {
        let (mut control, _) = control();
        let spec =
            |vlan, mac| NeighSpec { bridge: "br0".into(), vlan, address: address(1), mac, router: false };
        let mode = |vlan_filtering| BridgeSpec { vlan_filtering, ..BridgeSpec::new("br0") };
        control.neigh_add(&spec(0, MAC)).expect("added");
        control.set_bridge(mode(true)).expect("set");
        let vlans = |control: &Control| {
            let all = control.neighbours(&NeighFilter::default()).expect("any");
            all.into_iter().map(|known| known.vlan).collect::<Vec<_>>()
        };
        assert_eq!(vlans(&control), [1]);
        control.neigh_add(&spec(10, OTHER)).expect("added");
        let error = control.set_bridge(mode(false)).expect_err("two would be one").to_string();
        assert!(error.contains("10.0.0.1") && error.contains("neigh del"), "{error}");
        assert_eq!(vlans(&control), [1, 10], "nothing is half done");
        control.neigh_del(address(1), "br0", Some(1)).expect("removed");
        control.set_bridge(mode(false)).expect("set");
        assert_eq!(vlans(&control), [0]);
        control.close_all();
        control.crew.stop();
    }
}

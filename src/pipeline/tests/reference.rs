//! The rules once more, for comparison: slow, plain, one frame at a time, sharing no code with the pipeline.

use std::collections::BTreeMap;

use super::lab::Setup;
use crate::addr::VlanId;
use crate::spec::VlanMode;
use crate::stats::DropReason;

/// A bridge as the contract describes it.
pub(super) struct Reference {
    filtering: bool,
    ports: Vec<Setup>,
    /// By VLAN and address.
    pub(super) stations: BTreeMap<(u16, [u8; 6]), u16>,
    /// By port.
    pub(super) drops: Vec<BTreeMap<&'static str, u64>>,
    /// By port.
    pub(super) sent: Vec<Vec<Vec<u8>>>,
}

/// A frame inside a bridge: without its tag.
struct Inside {
    vlan: u16,
    /// PCP and DEI, as the upper four bits of a TCI.
    priority: u16,
    /// As it arrived, if it had a tag.
    tagged: bool,
    naked: Vec<u8>,
}

impl Reference {
    pub(super) fn new(filtering: bool, ports: &[Setup]) -> Reference {
        Reference {
            filtering,
            ports: ports.to_vec(),
            stations: BTreeMap::new(),
            drops: vec![BTreeMap::new(); ports.len()],
            sent: vec![Vec::new(); ports.len()],
        }
    }

    pub(super) fn hear(&mut self, from: u16, frame: &[u8]) {
        if let Err(reason) = self.forward(from, frame) {
            self.count(from, reason);
        }
    }

    fn count(&mut self, port: u16, reason: DropReason) {
        *self.drops[usize::from(port)].entry(reason.name()).or_default() += 1;
    }

    fn forward(&mut self, from: u16, frame: &[u8]) -> Result<(), DropReason> {
        let port = self.ports[usize::from(from)].clone();
        let inside = if self.filtering { admit(&port.vlan, frame)? } else { as_payload(frame)? };
        let to: [u8; 6] = frame[..6].try_into().expect("six");
        let source: [u8; 6] = frame[6..12].try_into().expect("six");
        let reserved = to[..5] == [0x01, 0x80, 0xc2, 0x00, 0x00] && (1..=15).contains(&to[5]);
        if port.learning && !(reserved && to[5] == 1) {
            self.stations.insert((inside.vlan, source), from);
        }
        if reserved {
            return Err(DropReason::LinkLocal);
        }
        let group = to[0] % 2 == 1;
        let known = self.stations.get(&(inside.vlan, to)).copied().filter(|_| !group);
        if let Some(known) = known {
            if let Some(reason) = self.refuses(from, known, inside.vlan) {
                return Err(reason);
            }
            self.leave(known, frame, &inside);
            return Ok(());
        }
        let takers: Vec<u16> = (0..self.ports.len() as u16)
            .filter(|&to| self.refuses(from, to, inside.vlan).is_none())
            .filter(|&to| group || self.ports[usize::from(to)].flood)
            .collect();
        takers.iter().for_each(|&to| self.leave(to, frame, &inside));
        if takers.is_empty() { Err(DropReason::NoEgress) } else { Ok(()) }
    }

    fn refuses(&self, from: u16, to: u16, vlan: u16) -> Option<DropReason> {
        let (one, other) = (&self.ports[usize::from(from)], &self.ports[usize::from(to)]);
        if from == to && !one.hairpin {
            Some(DropReason::SamePort)
        } else if one.isolated && other.isolated {
            Some(DropReason::Isolated)
        } else if self.filtering && !carries(&other.vlan, vlan) {
            Some(DropReason::VlanEgress)
        } else {
            None
        }
    }

    fn leave(&mut self, to: u16, frame: &[u8], inside: &Inside) {
        let port = &self.ports[usize::from(to)];
        let outside =
            if self.filtering { give_tag(&port.vlan, inside) } else { Ok((frame.to_vec(), inside.tagged)) };
        let outside = outside.and_then(|(bytes, _)| {
            let longest = match (port.strict_mtu, ethertype(&bytes)) {
                (false, 0x8100 | 0x88a8) => port.mtu + 22,
                (false, _) | (true, 0x8100) => port.mtu + 18,
                (true, _) => port.mtu + 14,
            };
            if bytes.len() > longest as usize { Err(DropReason::TooLong) } else { Ok(bytes) }
        });
        match outside {
            Ok(bytes) => self.sent[usize::from(to)].push(bytes),
            Err(reason) => self.count(to, reason),
        }
    }
}

fn ethertype(frame: &[u8]) -> u16 {
    u16::from(frame[12]) << 8 | u16::from(frame[13])
}

fn check_source(frame: &[u8]) -> Result<(), DropReason> {
    let bad = frame[6] % 2 == 1 || frame[6..12].iter().all(|&byte| byte == 0);
    if bad { Err(DropReason::BadSource) } else { Ok(()) }
}

fn as_payload(frame: &[u8]) -> Result<Inside, DropReason> {
    if frame.len() < 14 {
        return Err(DropReason::Runt);
    }
    check_source(frame)?;
    let tagged = ethertype(frame) == 0x8100 && frame.len() >= 18;
    Ok(Inside { vlan: 0, priority: 0, tagged, naked: Vec::new() })
}

/// The VLAN of a port's untagged frames.
fn untagged_vlan(mode: &VlanMode) -> Option<u16> {
    match mode {
        VlanMode::Default => Some(1),
        VlanMode::Access(vlan) => Some(vlan.get()),
        VlanMode::Trunk { native, .. } => native.map(VlanId::get),
    }
}

/// Whether a port takes and gives frames of a VLAN with tags.
fn tags(mode: &VlanMode, vlan: u16) -> bool {
    matches!(mode, VlanMode::Trunk { vids, .. } if vids.iter().any(|vid| vid.get() == vlan))
}

fn carries(mode: &VlanMode, vlan: u16) -> bool {
    untagged_vlan(mode) == Some(vlan) || tags(mode, vlan)
}

fn admit(mode: &VlanMode, frame: &[u8]) -> Result<Inside, DropReason> {
    if frame.len() < 14 || (ethertype(frame) == 0x8100 && frame.len() < 18) {
        return Err(DropReason::Runt);
    }
    check_source(frame)?;
    if ethertype(frame) == 0x88a8 {
        return Err(DropReason::VlanUnsupported);
    }
    let tagged = ethertype(frame) == 0x8100;
    let tci = if tagged { u16::from(frame[14]) << 8 | u16::from(frame[15]) } else { 0 };
    let naked = if tagged { [&frame[..12], &frame[16..]].concat() } else { frame.to_vec() };
    let vlan = match (tci & 0x0fff, mode) {
        (0, mode) => untagged_vlan(mode),
        // A trunk's native VLAN is admitted with its tag, too.
        (vid, VlanMode::Trunk { .. }) if carries(mode, vid) => Some(vid),
        _ => None,
    };
    Ok(Inside { vlan: vlan.ok_or(DropReason::VlanIngress)?, priority: tci & 0xf000, tagged, naked })
}

/// The frame as a port wants it, and whether it has a tag now.
fn give_tag(mode: &VlanMode, inside: &Inside) -> Result<(Vec<u8>, bool), DropReason> {
    let naked = &inside.naked;
    if untagged_vlan(mode) == Some(inside.vlan) {
        let inner_tag = matches!(naked.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8]));
        if matches!(mode, VlanMode::Trunk { .. }) && inner_tag {
            return Err(DropReason::DoubleTag);
        }
        return Ok((naked.clone(), false));
    }
    let tci = inside.priority | inside.vlan;
    let tag = [0x81, 0x00, (tci >> 8) as u8, tci as u8];
    Ok(([&naked[..12], &tag, &naked[12..]].concat(), true))
}

/// An offload header's fields, believed as they stand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Claim {
    pub(super) needs_csum: bool,
    pub(super) gso: u8,
    pub(super) hdr_len: u16,
    pub(super) gso_size: u16,
    pub(super) csum_start: u16,
    pub(super) csum_offset: u16,
}

impl Claim {
    pub(super) fn read(header: &[u8; 10]) -> Claim {
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        Claim {
            needs_csum: header[0] & 1 != 0,
            gso: header[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    pub(super) fn write(self) -> [u8; 10] {
        let mut header = [0; 10];
        header[0] = u8::from(self.needs_csum);
        header[1] = self.gso;
        for (at, field) in
            [(2, self.hdr_len), (4, self.gso_size), (6, self.csum_start), (8, self.csum_offset)]
        {
            header[at..at + 2].copy_from_slice(&field.to_le_bytes());
        }
        header
    }
}

/// The Internet checksum's sum, RFC 1071 word by word.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Where a frame's IP header is.
pub(super) fn ip_offset(frame: &[u8]) -> usize {
    let mut at = 12;
    while matches!(frame[at..at + 2], [0x81, 0x00] | [0x88, 0xa8]) {
        at += 4;
    }
    at + 2
}

/// The sum over a TCP or UDP pseudo-header.
pub(super) fn pseudo_sum(frame: &[u8], ip: usize, protocol: u8, len: usize) -> u16 {
    let addresses = if frame[ip] >> 4 == 4 { ip + 12..ip + 20 } else { ip + 8..ip + 40 };
    sum(&frame[addresses], u32::from(protocol) + len as u32)
}

/// What a frame is once nothing is left to do: the frames on the wire.
pub(super) fn finish(frame: &[u8], claim: &Claim) -> Vec<Vec<u8>> {
    let (l4, field) = (usize::from(claim.csum_start), usize::from(claim.csum_start + claim.csum_offset));
    let udp = claim.csum_offset == 6;
    let complete = |mut frame: Vec<u8>| {
        let checksum = match (!sum(&frame[l4..], 0), udp) {
            (0, true) => 0xffff,
            (checksum, _) => checksum,
        };
        put(&mut frame, field, checksum);
        frame
    };
    if !claim.needs_csum {
        return vec![frame.to_vec()];
    }
    if claim.gso == 0 {
        return vec![complete(frame.to_vec())];
    }
    let ip = ip_offset(frame);
    let payload = l4 + if udp { 8 } else { usize::from(frame[l4 + 12] >> 4) * 4 };
    let pieces: Vec<&[u8]> = frame[payload..].chunks(usize::from(claim.gso_size)).collect();
    let last = pieces.len() - 1;
    let segment = |(i, piece): (usize, &&[u8])| {
        let mut bytes = [&frame[..payload], *piece].concat();
        let len = bytes.len();
        if bytes[ip] >> 4 == 4 {
            put(&mut bytes, ip + 2, (len - ip) as u16);
            let id = u16::from_be_bytes([frame[ip + 4], frame[ip + 5]]).wrapping_add(i as u16);
            put(&mut bytes, ip + 4, id);
            put(&mut bytes, ip + 10, 0);
            let checksum = !sum(&bytes[ip..l4], 0);
            put(&mut bytes, ip + 10, checksum);
        } else {
            put(&mut bytes, ip + 4, (len - ip - 40) as u16);
        }
        if udp {
            put(&mut bytes, l4 + 4, (len - l4) as u16);
        } else {
            let first = u32::from_be_bytes(frame[l4 + 4..l4 + 8].try_into().expect("four"));
            let sequence = first.wrapping_add((i * usize::from(claim.gso_size)) as u32);
            bytes[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
            if i != last {
                bytes[l4 + 13] &= !0x09;
            }
            if i != 0 {
                bytes[l4 + 13] &= !0x80;
            }
        }
        let pseudo = pseudo_sum(&bytes, ip, if udp { 17 } else { 6 }, len - l4);
        put(&mut bytes, field, pseudo);
        complete(bytes)
    };
    pieces.iter().enumerate().map(segment).collect()
}

//! Frames as bytes: built, and checked.

use std::fmt::Write as _;

pub type Mac = [u8; 6];

pub const BROADCAST: Mac = [0xff; 6];
/// EtherType for local experiments (IEEE 802): every frame that tests make up, unless they say otherwise.
pub const TEST: u16 = 0x88b5;
pub const Q: u16 = 0x8100;
pub const AD: u16 = 0x88a8;

/// Station number `n`; locally administered.
pub fn station(n: u32) -> Mac {
    let [a, b, c, d] = n.to_be_bytes();
    [0x02, 0x00, a, b, c, d]
}

/// A frame; tags as (TPID, TCI), outermost first.
pub fn frame(to: Mac, from: Mac, tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(14 + 4 * tags.len() + payload.len());
    bytes.extend(to);
    bytes.extend(from);
    for (tpid, tci) in tags {
        bytes.extend(tpid.to_be_bytes());
        bytes.extend(tci.to_be_bytes());
    }
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// An untagged test frame whose payload is `text`.
pub fn test_frame(to: Mac, from: Mac, text: &str) -> Vec<u8> {
    frame(to, from, &[], TEST, text.as_bytes())
}

/// The tags of a frame, its EtherType and where its payload begins.
pub fn untag(bytes: &[u8]) -> (Vec<(u16, u16)>, u16, usize) {
    let word = |at: usize| bytes.get(at..at + 2).map_or(0, |pair| u16::from_be_bytes([pair[0], pair[1]]));
    let (mut tags, mut at) = (Vec::new(), 12);
    while matches!(word(at), Q | AD) && bytes.len() >= at + 4 {
        tags.push((word(at), word(at + 2)));
        at += 4;
    }
    (tags, word(at), at + 2)
}

/// Whether it is one that tests made up with [`TEST`], under whatever tags.
pub fn is_test(bytes: &[u8]) -> bool {
    untag(bytes).1 == TEST
}

/// One line for people.
pub fn show(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mac = |mac: &[u8]| mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    if let Some(header) = bytes.get(..14) {
        let (tags, ethertype, at) = untag(bytes);
        let _ = write!(text, "{} > {}", mac(&header[6..12]), mac(&header[..6]));
        for (tpid, tci) in tags {
            let _ = write!(text, " {tpid:04x}/vid {} pcp {} dei {}", tci & 0xfff, tci >> 13, tci >> 12 & 1);
        }
        let rest = bytes.get(at..).unwrap_or_default();
        let _ = write!(text, " type {ethertype:04x}, {} bytes, payload", bytes.len());
        for byte in rest.iter().take(16) {
            let _ = write!(text, " {byte:02x}");
        }
    } else {
        let _ = write!(text, "runt of {} bytes", bytes.len());
    }
    text
}

/// The Internet checksum (RFC 1071) of some bytes.
fn sum(mut total: u32, bytes: &[u8]) -> u32 {
    for pair in bytes.chunks(2) {
        total += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        total = (total & 0xffff) + (total >> 16);
    }
    total
}

/// What is inside an IP packet, when every checksum in it is right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transport {
    Tcp { source: u16, destination: u16, sequence: u32, payload: Vec<u8> },
    Udp { source: u16, destination: u16, payload: Vec<u8> },
    Other,
}

/// Parses an IPv4 or IPv6 frame and checks the IPv4 header's checksum and TCP's or UDP's.
///
/// # Errors
/// Says what is wrong.
pub fn check_ip(bytes: &[u8]) -> Result<Transport, String> {
    let (_, ethertype, at) = untag(bytes);
    let packet = bytes.get(at..).ok_or("no payload")?;
    let (protocol, pseudo, segment) = match ethertype {
        0x0800 => {
            let header_len = usize::from(*packet.first().ok_or("empty")? & 15) * 4;
            let header = packet.get(..header_len).ok_or("IPv4 header is cut")?;
            if sum(0, header) != 0xffff {
                return Err(format!("IPv4 header checksum is wrong: {header:02x?}"));
            }
            let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let segment = packet
                .get(header_len..total)
                .ok_or_else(|| format!("IPv4 total length {total}, but {} bytes are there", packet.len()))?;
            if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
                return Ok(Transport::Other);
            }
            (header[9], sum(0, &header[12..20]), segment)
        }
        0x86dd => {
            let header = packet.get(..40).ok_or("IPv6 header is cut")?;
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let segment = packet
                .get(40..40 + len)
                .ok_or_else(|| format!("IPv6 payload length {len}, but {} bytes are there", packet.len()))?;
            (header[6], sum(0, &header[8..40]), segment)
        }
        _ => return Ok(Transport::Other),
    };
    let (header_len, name) = match protocol {
        6 => (usize::from(*segment.get(12).ok_or("TCP header is cut")? >> 4) * 4, "TCP"),
        17 => (8, "UDP"),
        _ => return Ok(Transport::Other),
    };
    let payload = segment.get(header_len..).ok_or("transport header is cut")?.to_vec();
    let word = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    if protocol == 17 && word(4) as usize != segment.len() {
        return Err(format!("UDP length {} in {} bytes", word(4), segment.len()));
    }
    let unused = protocol == 17 && word(6) == 0 && ethertype == 0x0800;
    let length = u32::try_from(segment.len()).map_err(|_| "too long")?;
    let mut total = sum(pseudo, segment) + u32::from(protocol) + (length >> 16) + (length & 0xffff);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    if !unused && total != 0xffff {
        return Err(format!("{name} checksum is wrong in {}", show(bytes)));
    }
    let (source, destination) = (word(0), word(2));
    Ok(if protocol == 6 {
        let sequence = u32::from(word(4)) << 16 | u32::from(word(6));
        Transport::Tcp { source, destination, sequence, payload }
    } else {
        Transport::Udp { source, destination, payload }
    })
}

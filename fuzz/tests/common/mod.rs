//! Good frames to spoil.

use etherparse::{IpNumber, TcpHeader};

/// Which good frame, which bytes to overwrite at which places, and how much of it to keep.
pub(crate) type Input = (u8, Vec<(u16, u8)>, u16);

/// A frame as `input` says: TCP or UDP, IPv4 or IPv6, up to three tags, with extension headers or without, spoilt.
pub(crate) fn frame((kind, patches, keep): &Input) -> Vec<u8> {
    let (ipv4, tcp, extended) = (kind & 1 != 0, kind & 2 != 0, kind & 4 != 0);
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for _ in 0..kind >> 3 & 3 {
        frame.extend([0x81, 0, 0, 10]);
    }
    let transport = transport(tcp, usize::from(*kind >> 5) * 200);
    network(&mut frame, ipv4, tcp, extended, &transport);
    for (at, value) in patches {
        // Most of what matters is in the first 128 bytes.
        let at = if at & 0x8000 == 0 { at & 127 } else { at & 0x7fff };
        if let Some(byte) = frame.get_mut(usize::from(at)) {
            *byte = *value;
        }
    }
    if keep & 0xc000 == 0 {
        frame.truncate(usize::from(*keep));
    }
    frame
}

fn transport(tcp: bool, payload_len: usize) -> Vec<u8> {
    let mut transport = if tcp {
        TcpHeader::new(1, 2, 3, 4).to_bytes().to_vec()
    } else {
        let len = u16::try_from(8 + payload_len).unwrap_or(u16::MAX).to_be_bytes();
        vec![0, 1, 0, 2, len[0], len[1], 0, 0]
    };
    transport.resize(transport.len() + payload_len, 0x5a);
    transport
}

fn network(frame: &mut Vec<u8>, ipv4: bool, tcp: bool, extended: bool, transport: &[u8]) {
    let protocol = if tcp { IpNumber::TCP.0 } else { IpNumber::UDP.0 };
    if ipv4 {
        let options: &[u8] = if extended { &[1; 8] } else { &[] };
        let len = u16::try_from(20 + options.len() + transport.len()).unwrap_or(u16::MAX).to_be_bytes();
        frame.extend([8, 0, if extended { 0x47 } else { 0x45 }, 0, len[0], len[1]]);
        frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(options);
    } else {
        // Hop-by-hop, destination options, routing with one segment left: eight bytes of padding each but the last.
        let mut extensions =
            vec![60, 0, 1, 4, 0, 0, 0, 0, 43, 0, 1, 4, 0, 0, 0, 0, protocol, 2, 0, 1, 0, 0, 0, 0];
        extensions.resize(40, 0xfd);
        let (first, extensions) = if extended { (0, &extensions[..]) } else { (protocol, &[][..]) };
        let len = u16::try_from(extensions.len() + transport.len()).unwrap_or(u16::MAX).to_be_bytes();
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, len[0], len[1], first, 64]);
        frame.extend([0xfe; 16]);
        frame.extend([0xfd; 16]);
        frame.extend(extensions);
    }
    frame.extend(transport);
}

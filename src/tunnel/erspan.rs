//! ERSPAN headers (draft-foschiano-erspan): frames that were mirrored, behind GRE.
//!
//! ```text
//!  0 ─ version ─ 4 ───── VLAN ───── 16 ─ COS ─ 19 ─ En or BSO ─ 21 ─ T ─ 22 ─ session ─ 32
//! type II:
//! 32 ─ reserved ─ 44 ───────────────────────── index ────────────────────────────────── 64
//! type III:
//! 32 ────────────────────────────────────── timestamp ───────────────────────────────── 64
//! 64 ── security group tag ── 80 ─ P ─ FT ─ 86 ─ hardware ─ 92 ─ D ─ 93 ─ Gra ─ 95 ─ O ─ 96
//! ```
//!
//! The version in the header is one less than the type's number, and it is what Linux calls `erspan_ver`. GRE has a sequence number
//! in front of it and nothing else. Type I has no header at all, and so no session that could say whose its frames are: it
//! is not spoken here.

use super::gre::{self, protocol};
use crate::bridge::vlan::TPID_8021Q;
use crate::frame::{ADDRESSES_LEN, TAG_LEN};

/// Largest session.
pub const SESSION_MAX: u16 = (1 << 10) - 1;
/// Largest index.
pub const INDEX_MAX: u32 = (1 << 20) - 1;
/// Largest hardware identifier.
pub const HARDWARE_MAX: u8 = (1 << 6) - 1;
/// Length of the longest header that we send, in bytes.
pub const LEN_MAX: usize = Kind::III.header_len();

/// "The tag is still in the frame", as opposed to "there was none" (0).
const EN_IN_FRAME: u16 = 3;
/// "Received with a wrong frame check sequence".
const BSO_BAD: u16 = 3;
/// The mirrored frame was cut short.
const FLAG_T: u16 = 0x0400;
/// "Of Ethernet", as Linux sets it.
const FLAG_P: u16 = 0x8000;
/// What kind of frame; 0 is Ethernet.
const FRAME_TYPE: u16 = 0x7c00;
/// "Leaving the mirrored port".
const FLAG_D: u16 = 0x0008;
/// A sub-header follows.
const FLAG_O: u16 = 0x0001;
/// Length of that, in bytes.
const SUB_HEADER_LEN: usize = 8;

/// Which header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Type II, version 1.
    II,
    /// Type III, version 2.
    III,
}

/// Which way a mirrored frame went, seen from the mirrored port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Direction {
    /// It was received.
    #[default]
    Ingress,
    /// It was sent.
    Egress,
}

/// What a sender says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Sender {
    /// By type II.
    II {
        /// Where the frames were mirrored, up to [`INDEX_MAX`].
        index: u32,
    },
    /// By type III.
    III {
        /// Which way they went.
        direction: Direction,
        /// Which engine mirrored them, up to [`HARDWARE_MAX`].
        hardware: u8,
    },
}

impl Kind {
    /// Length of the header as we send it, in bytes.
    #[must_use]
    pub const fn header_len(self) -> usize {
        match self {
            Kind::II => 8,
            Kind::III => 12,
        }
    }

    /// What GRE calls it.
    #[must_use]
    pub const fn protocol(self) -> u16 {
        match self {
            Kind::II => protocol::ERSPAN_II,
            Kind::III => protocol::ERSPAN_III,
        }
    }

    const fn version(self) -> u16 {
        match self {
            Kind::II => 1,
            Kind::III => 2,
        }
    }
}

impl Sender {
    /// Which header it sends.
    #[inline]
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Sender::II { .. } => Kind::II,
            Sender::III { .. } => Kind::III,
        }
    }

    /// The header in front of `frame`, without GRE's: the first [`Kind::header_len`] of these bytes. The timestamp counts 100 µs
    /// (granularity 0, as Linux); type II has none.
    #[inline]
    #[must_use]
    pub fn to_bytes(&self, session: u16, timestamp: u32, frame: &[&[u8]]) -> [u8; LEN_MAX] {
        let tag = tag(frame);
        let tci = tag.unwrap_or(0);
        // Priority has the same place in the tag and here.
        let session = tci & 0xe000 | session & SESSION_MAX;
        let en = if tag.is_some() { EN_IN_FRAME << 11 } else { 0 };
        let [a, b] = (self.kind().version() << 12 | tci & 0x0fff).to_be_bytes();
        match *self {
            Sender::II { index } => {
                let [c, d] = (session | en).to_be_bytes();
                let [e, f, g, h] = (index & INDEX_MAX).to_be_bytes();
                [a, b, c, d, e, f, g, h, 0, 0, 0, 0]
            }
            Sender::III { direction, hardware } => {
                let [c, d] = session.to_be_bytes();
                let [e, f, g, h] = timestamp.to_be_bytes();
                let direction = if direction == Direction::Egress { FLAG_D } else { 0 };
                let [i, j] = (FLAG_P | u16::from(hardware & HARDWARE_MAX) << 4 | direction).to_be_bytes();
                [a, b, c, d, e, f, g, h, 0, 0, i, j]
            }
        }
    }
}

/// Tag control information of the frame's 802.1Q tag, wherever the frame is cut.
#[inline]
fn tag(frame: &[&[u8]]) -> Option<u16> {
    let whole = frame.first().and_then(|piece| piece.first_chunk());
    let [.., a, b, c, d] = whole.copied().unwrap_or_else(|| start(frame));
    (u16::from_be_bytes([a, b]) == TPID_8021Q).then_some(u16::from_be_bytes([c, d]))
}

/// The frame's first bytes, as far as there are any.
fn start(frame: &[&[u8]]) -> [u8; ADDRESSES_LEN + TAG_LEN] {
    let mut start = [0; ADDRESSES_LEN + TAG_LEN];
    let bytes = frame.iter().flat_map(|piece| piece.iter());
    start.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
    start
}

/// The session and the frame of a GRE packet of one of these kinds. `None` when it is not what its protocol number says or
/// is cut short.
///
/// So are frames that no station would have received: those that the mirror cut off (T), with a wrong check sequence, or not of Ethernet. A tag
/// that the mirror took off (En 2) is not put back, as Linux does not.
#[inline]
#[must_use]
pub fn parse<'a>(header: &gre::Header, payload: &'a [u8]) -> Option<(Kind, u16, &'a [u8])> {
    if (header.checksum, header.key, header.sequence.is_some()) != (false, None, true) {
        return None;
    }
    let word = |at| payload.get(at..).and_then(<[u8]>::first_chunk).map(|&bytes| u16::from_be_bytes(bytes));
    let kind = match header.protocol {
        protocol::ERSPAN_II => Kind::II,
        protocol::ERSPAN_III => Kind::III,
        _ => return None,
    };
    let second = word(2)?;
    if word(0)? >> 12 != kind.version() || second & FLAG_T != 0 {
        return None;
    }
    let mut len = kind.header_len();
    if kind == Kind::III {
        let flags = word(10)?;
        if second >> 11 & 3 == BSO_BAD || flags & FRAME_TYPE != 0 {
            return None;
        }
        if flags & FLAG_O != 0 {
            len += SUB_HEADER_LEN;
        }
    }
    Some((kind, second & SESSION_MAX, payload.get(len..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNTAGGED: &[u8] = &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    /// Priority 5, drop eligible, VLAN 0xabc.
    const TAGGED: &[u8] = &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0xba, 0xbc, 8, 0];

    fn gre(kind: Kind) -> gre::Header {
        gre::Header { protocol: kind.protocol(), sequence: Some(1), ..gre::Header::default() }
    }

    #[test]
    fn as_in_the_draft() {
        let two = Sender::II { index: 0x5_4321 };
        assert_eq!(two.to_bytes(0x3a5, 7, &[UNTAGGED])[..8], [0x10, 0, 0x03, 0xa5, 0, 5, 0x43, 0x21]);
        let tagged = [0x1a, 0xbc, 0xbb, 0xa5, 0, 5, 0x43, 0x21];
        assert_eq!(two.to_bytes(0x3a5, 7, &[TAGGED])[..8], tagged);
        for cut in 0..TAGGED.len() {
            let (a, b) = TAGGED.split_at(cut);
            assert_eq!(two.to_bytes(0x3a5, 7, &[a, &[], b])[..8], tagged, "cut at {cut}");
        }

        let three = Sender::III { direction: Direction::Egress, hardware: 0x2a };
        let header = [0x2a, 0xbc, 0xa3, 0xa5, 1, 2, 3, 4, 0, 0, 0x82, 0xa8];
        assert_eq!(three.to_bytes(0x3a5, 0x0102_0304, &[TAGGED]), header);
        let three = Sender::III { direction: Direction::Ingress, hardware: 0 };
        let header = [0x20, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x80, 0];
        assert_eq!(three.to_bytes(1, 0, &[UNTAGGED]), header);
    }

    #[test]
    fn what_is_too_large_does_not_spill_over() {
        let two = Sender::II { index: u32::MAX };
        assert_eq!(two.to_bytes(u16::MAX, 0, &[])[..8], [0x10, 0, 0x03, 0xff, 0, 0x0f, 0xff, 0xff]);
        let three = Sender::III { direction: Direction::Ingress, hardware: u8::MAX };
        assert_eq!(three.to_bytes(0, 0, &[])[10..], [0x83, 0xf0]);
    }

    #[test]
    fn fields_that_refuse() {
        let header = gre(Kind::II);
        let good = [0x10, 0, 0x03, 0xa5, 0, 0, 0, 0, 0xaa];
        assert_eq!(parse(&header, &good), Some((Kind::II, 0x3a5, &[0xaa][..])));
        assert_eq!(parse(&gre(Kind::III), &[&good[..], &[0; 8]].concat()), None, "version 1 as type III");
        assert_eq!(parse(&header, &good[..7]), None, "cut short");
        assert_eq!(parse(&header, &[0x10, 0, 0x07, 0xa5, 0, 0, 0, 0]), None, "the mirror cut it");
        assert_eq!(parse(&header, &[0x20, 0, 0x03, 0xa5, 0, 0, 0, 0]), None, "version 2");
        assert_eq!(parse(&header, &[0x10, 0, 0x18, 1, 0xff, 0xff, 0xff, 0xff]), Some((Kind::II, 1, &[][..])));
        assert_eq!(parse(&gre::Header { sequence: None, ..header }, &good), None, "type I");
        assert_eq!(parse(&gre::Header { key: Some(1), ..header }, &good), None);
        assert_eq!(parse(&gre::Header { checksum: true, ..header }, &good), None);
        assert_eq!(parse(&gre::Header { protocol: protocol::ETHERNET, ..header }, &good), None);

        let parse = |second: u8, flags: [u8; 2], behind: &[u8]| {
            let head = [0x20, 0, second, 7, 0, 0, 0, 0, 0, 0, flags[0], flags[1]];
            parse(&gre(Kind::III), &[&head, behind].concat()).map(|(kind, session, frame)| {
                assert_eq!(kind, Kind::III);
                (session, frame.to_vec())
            })
        };
        assert_eq!(parse(0, [0x80, 0], &[0xaa]), Some((7, vec![0xaa])));
        assert_eq!(
            parse(0, [0x83, 0xfe], &[0xaa]),
            Some((7, vec![0xaa])),
            "hardware, direction, granularity"
        );
        assert_eq!(parse(0x08, [0x80, 0], &[]), Some((7, vec![])), "short");
        assert_eq!(parse(0x10, [0x80, 0], &[]), Some((7, vec![])), "oversized");
        assert_eq!(parse(0x18, [0x80, 0], &[]), None, "bad");
        assert_eq!(parse(0x04, [0x80, 0], &[]), None, "the mirror cut it");
        assert_eq!(parse(0, [0x88, 0], &[]), None, "an IP packet");
        assert_eq!(parse(0, [0x80, 1], &[1, 2, 3, 4, 5, 6, 7, 8, 0xaa]), Some((7, vec![0xaa])), "sub-header");
        assert_eq!(parse(0, [0x80, 1], &[1, 2, 3, 4, 5, 6, 7]), None, "sub-header cut short");
    }

    fn sender() -> impl Strategy<Value = Sender> {
        let direction = prop_oneof![Just(Direction::Ingress), Just(Direction::Egress)];
        prop_oneof![
            (0..=INDEX_MAX).prop_map(|index| Sender::II { index }),
            (direction, 0..=HARDWARE_MAX)
                .prop_map(|(direction, hardware)| Sender::III { direction, hardware }),
        ]
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            sender in sender(),
            session in 0..=SESSION_MAX,
            timestamp in any::<u32>(),
            tagged in any::<bool>(),
            frame in any::<Vec<u8>>(),
        ) {
            let frame = [if tagged { TAGGED } else { &[] }, &frame].concat();
            let bytes = sender.to_bytes(session, timestamp, &[&frame]);
            let packet = [&bytes[..sender.kind().header_len()], &frame].concat();
            let parsed = parse(&gre(sender.kind()), &packet);
            prop_assert_eq!(parsed, Some((sender.kind(), session, &frame[..])));
        }

        #[test]
        fn any_bytes_are_taken_or_refused(
            protocol in prop_oneof![Just(protocol::ERSPAN_II), Just(protocol::ERSPAN_III), any::<u16>()],
            (checksum, key, sequence) in any::<(bool, Option<u32>, Option<u32>)>(),
            payload in any::<Vec<u8>>(),
        ) {
            let header = gre::Header { protocol, checksum, key, sequence };
            if let Some((_, session, frame)) = parse(&header, &payload) {
                prop_assert!(session <= SESSION_MAX && payload.ends_with(frame));
            }
        }
    }
}

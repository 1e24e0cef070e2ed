//! What all tunnels have in common: a number says which network a frame is of, and a header with it stands before the frame.
//!
//! Two sides that know different things. An endpoint knows how to read ([`Encapsulation`]): whoever listens for GRE gets
//! Ethernet and ERSPAN alike, and tells them apart by what is in the packet. A remote knows what to write ([`Header`]).

use std::fmt;

use arrayvec::ArrayVec;

use super::{erspan, geneve, gre, vxlan};

/// Length of GRE's header before ERSPAN's, in bytes: with a sequence number and nothing else.
const ERSPAN_GRE_LEN: usize = gre::header_len(false, true, false);
/// Length of the longest header that [`Header::write`] makes, in bytes.
pub const LEN_MAX: usize = ERSPAN_GRE_LEN + erspan::LEN_MAX;

/// What arrives at an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Encapsulation {
    /// VXLAN, over UDP.
    Vxlan,
    /// Geneve, over UDP.
    Geneve,
    /// GRE, over IP: frames by themselves or behind ERSPAN.
    Gre,
}

/// Which network a frame is of, among all that one endpoint may be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NetworkId {
    /// VXLAN's and Geneve's VNI.
    Vni(u32),
    /// GRE's key; to have none is a network of its own.
    Key(Option<u32>),
    /// ERSPAN's session, of a kind.
    Session(erspan::Kind, u16),
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetworkId::Vni(vni) => write!(f, "VNI {vni}"),
            NetworkId::Key(Some(key)) => write!(f, "GRE key {key}"),
            NetworkId::Key(None) => f.write_str("GRE without key"),
            NetworkId::Session(_, session) => write!(f, "ERSPAN session {session}"),
        }
    }
}

impl Encapsulation {
    /// The UDP port that IANA assigned; `None` for what stands on IP itself ([`gre::IP_PROTOCOL`]).
    #[must_use]
    pub const fn port(self) -> Option<u16> {
        match self {
            Encapsulation::Vxlan => Some(vxlan::PORT),
            Encapsulation::Geneve => Some(geneve::PORT),
            Encapsulation::Gre => None,
        }
    }

    /// The network and the frame of a datagram, or of what is behind the IP header. `None` when it is not of this
    /// encapsulation: see the `parse` of each.
    #[inline]
    #[must_use]
    pub fn parse(self, datagram: &[u8]) -> Option<(NetworkId, &[u8])> {
        let vni = |(vni, frame)| (NetworkId::Vni(vni), frame);
        match self {
            Encapsulation::Vxlan => vxlan::parse(datagram).map(vni),
            Encapsulation::Geneve => geneve::parse(datagram).map(vni),
            Encapsulation::Gre => {
                let (header, payload) = gre::parse(datagram)?;
                if header.protocol == gre::protocol::ETHERNET {
                    return Some((NetworkId::Key(header.key), payload));
                }
                let (kind, session, frame) = erspan::parse(&header, payload)?;
                Some((NetworkId::Session(kind, session), frame))
            }
        }
    }
}

/// What a remote wants before its frames, but for the network's number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Header {
    /// VXLAN's.
    Vxlan,
    /// Geneve's.
    Geneve,
    /// GRE's, with an Ethernet frame behind.
    Gre {
        /// With a key: the network's number.
        key: bool,
        /// With sequence numbers.
        sequence: bool,
        /// With a checksum over everything.
        checksum: bool,
    },
    /// GRE's and ERSPAN's.
    Erspan(erspan::Sender),
}

impl Header {
    /// How to read what a remote like this one sends.
    #[must_use]
    pub const fn encapsulation(&self) -> Encapsulation {
        match self {
            Header::Vxlan => Encapsulation::Vxlan,
            Header::Geneve => Encapsulation::Geneve,
            Header::Gre { .. } | Header::Erspan(_) => Encapsulation::Gre,
        }
    }

    /// The network of that number: VNI, key or session. Without a key in it GRE has one network, whatever the number.
    #[must_use]
    pub const fn network(&self, number: u32) -> NetworkId {
        match self {
            Header::Vxlan | Header::Geneve => NetworkId::Vni(number & vxlan::VNI_MAX),
            Header::Gre { key: true, .. } => NetworkId::Key(Some(number)),
            Header::Gre { key: false, .. } => NetworkId::Key(None),
            Header::Erspan(sender) => NetworkId::Session(sender.kind(), session(number)),
        }
    }

    /// Largest number of a network; 0 where there is but one.
    #[must_use]
    pub const fn number_max(&self) -> u32 {
        match self {
            Header::Vxlan => vxlan::VNI_MAX,
            Header::Geneve => geneve::VNI_MAX,
            Header::Gre { key: true, .. } => u32::MAX,
            Header::Gre { key: false, .. } => 0,
            Header::Erspan(_) => erspan::SESSION_MAX as u32,
        }
    }

    /// Length in bytes, the same for every frame.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Header::Vxlan => vxlan::HEADER_LEN,
            Header::Geneve => geneve::HEADER_LEN,
            Header::Gre { key, sequence, checksum } => gre::header_len(*key, *sequence, *checksum),
            Header::Erspan(sender) => ERSPAN_GRE_LEN + sender.kind().header_len(),
        }
    }

    /// Never: kept because a type with a length has it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Whether it is the same for all frames of a network, so that it need not be written for each.
    #[must_use]
    pub const fn is_constant(&self) -> bool {
        matches!(self, Header::Vxlan | Header::Geneve | Header::Gre { sequence: false, checksum: false, .. })
    }

    /// Whether frames are numbered: then [`Header::write`] wants a new number for each.
    #[must_use]
    pub const fn has_sequence(&self) -> bool {
        matches!(self, Header::Erspan(_) | Header::Gre { sequence: true, .. })
    }

    /// The header in front of `frame`, which is given in pieces and looked at only for a checksum or ERSPAN's copy of its tag.
    ///
    /// `sequence` goes where there are sequence numbers; `timestamp`, in units of 100 µs, into ERSPAN's type III.
    #[inline]
    #[must_use]
    pub fn write(
        &self,
        number: u32,
        sequence: u32,
        timestamp: u32,
        frame: &[&[u8]],
    ) -> ArrayVec<u8, LEN_MAX> {
        // Arrays are copied whole, whatever of them counts: a known length takes no call, and eight bytes cost what eight bytes cost.
        let mut bytes = [0; LEN_MAX];
        match self {
            Header::Vxlan => bytes[..vxlan::HEADER_LEN].copy_from_slice(&vxlan::header(number)),
            Header::Geneve => bytes[..geneve::HEADER_LEN].copy_from_slice(&geneve::header(number)),
            Header::Gre { key, sequence: sequenced, checksum } => {
                let header = gre::Header {
                    protocol: gre::protocol::ETHERNET,
                    checksum: *checksum,
                    key: key.then_some(number),
                    sequence: sequenced.then_some(sequence),
                };
                bytes[..gre::LEN_MAX].copy_from_slice(&header.to_bytes(frame));
            }
            Header::Erspan(sender) => {
                let protocol = sender.kind().protocol();
                let header = gre::Header { protocol, sequence: Some(sequence), ..gre::Header::default() };
                bytes[..gre::LEN_MAX].copy_from_slice(&header.to_bytes(&[]));
                let header = sender.to_bytes(session(number), timestamp, frame);
                bytes[ERSPAN_GRE_LEN..].copy_from_slice(&header);
            }
        }
        let mut bytes = ArrayVec::from(bytes);
        bytes.truncate(self.len());
        bytes
    }
}

/// A session's number, of which the header has ten bits.
#[allow(clippy::cast_possible_truncation, reason = "ten bits")]
const fn session(number: u32) -> u16 {
    (number & erspan::SESSION_MAX as u32) as u16
}

#[cfg(test)]
mod scapy;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;

    const II: Header = Header::Erspan(erspan::Sender::II { index: 0x12345 });

    #[test]
    fn one_way_to_write_them_all() {
        let write = |header: Header| header.write(5, 6, 7, &[&[0; 60]]).to_vec();
        assert_eq!(write(Header::Vxlan), [8, 0, 0, 0, 0, 0, 5, 0]);
        assert_eq!(write(Header::Geneve), [0, 0, 0x65, 0x58, 0, 0, 5, 0]);
        let gre = |key, sequence| write(Header::Gre { key, sequence, checksum: false });
        assert_eq!(gre(false, false), [0, 0, 0x65, 0x58]);
        assert_eq!(gre(true, true), [0x30, 0, 0x65, 0x58, 0, 0, 0, 5, 0, 0, 0, 6]);
        assert_eq!(write(II), [0x10, 0, 0x88, 0xbe, 0, 0, 0, 6, 0x10, 0, 0, 5, 0, 1, 0x23, 0x45]);
        let three = Header::Erspan(erspan::Sender::III { direction: erspan::Direction::Egress, hardware: 1 });
        let expected = [0x10, 0, 0x22, 0xeb, 0, 0, 0, 6, 0x20, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0x80, 0x18];
        assert_eq!(write(three), expected);
        assert_eq!(three.len(), LEN_MAX);
    }

    #[test]
    fn gre_tells_frames_and_mirrored_frames_apart() {
        let parse = |datagram: &[u8]| Encapsulation::Gre.parse(datagram).map(|(network, _)| network);
        assert_eq!(parse(&[0, 0, 0x65, 0x58]), Some(NetworkId::Key(None)));
        assert_eq!(parse(&[0x20, 0, 0x65, 0x58, 0, 0, 0, 0]), Some(NetworkId::Key(Some(0))));
        let session = NetworkId::Session(erspan::Kind::II, 5);
        assert_eq!(parse(&II.write(5, 6, 7, &[])), Some(session));
        assert_eq!(parse(&[0, 0, 0x88, 0xbe]), None, "ERSPAN of type I");
        assert_eq!(parse(&[0, 0, 0x08, 0x00]), None, "IPv4");
        assert_eq!(parse(&[]), None);
    }

    fn header() -> impl Strategy<Value = Header> {
        use erspan::{Direction, HARDWARE_MAX, INDEX_MAX, Sender};
        let gre = |(key, sequence, checksum)| Header::Gre { key, sequence, checksum };
        let two = |index| Header::Erspan(Sender::II { index });
        let three = |(egress, hardware)| {
            let direction = if egress { Direction::Egress } else { Direction::Ingress };
            Header::Erspan(Sender::III { direction, hardware })
        };
        prop_oneof![
            Just(Header::Vxlan),
            Just(Header::Geneve),
            any::<(bool, bool, bool)>().prop_map(gre),
            (0..=INDEX_MAX).prop_map(two),
            (any::<bool>(), 0..=HARDWARE_MAX).prop_map(three),
        ]
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            header in header(),
            (number, sequence, timestamp) in any::<(u32, u32, u32)>(),
            frame in any::<Vec<u8>>(),
            cut in any::<Index>(),
        ) {
            let number = if header.number_max() == u32::MAX { number } else { number % (header.number_max() + 1) };
            let (a, b) = frame.split_at(cut.index(frame.len() + 1));
            let bytes = header.write(number, sequence, timestamp, &[a, b]);
            prop_assert_eq!(bytes.len(), header.len());
            let datagram = [&bytes[..], &frame].concat();
            let parsed = header.encapsulation().parse(&datagram);
            prop_assert_eq!(parsed, Some((header.network(number), &frame[..])));
            if header.is_constant() {
                prop_assert_eq!(&header.write(number, !sequence, !timestamp, &[]), &bytes);
            }
            if !header.has_sequence() {
                prop_assert_eq!(header.write(number, !sequence, timestamp, &[a, b]), bytes);
            }
        }

        #[test]
        fn a_number_too_large_stays_in_its_place(header in header(), number in any::<u32>()) {
            let bytes = header.write(number, 0, 0, &[]);
            let parsed = header.encapsulation().parse(&bytes);
            prop_assert_eq!(parsed, Some((header.network(number), &[][..])));
        }

        #[test]
        fn any_bytes_are_taken_or_refused(datagram in any::<Vec<u8>>()) {
            for encapsulation in [Encapsulation::Vxlan, Encapsulation::Geneve, Encapsulation::Gre] {
                if let Some((_, frame)) = encapsulation.parse(&datagram) {
                    prop_assert!(datagram.ends_with(frame));
                }
            }
        }
    }
}

//! Wrapping: frames become packets to one remote, but for what a socket adds.
//!
//! Several leave by one call if they have a class, and a length, in common: [`Wrapper::run`] says how many,
//! [`Wrapper::wrap`] gives their pieces, each packet's header first.

use std::io::IoSlice;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arrayvec::ArrayVec;

use super::ecn;
use super::encapsulation::{Header, LEN_MAX};
use super::flow::Flow;
use crate::bridge::vlan::TPID_8021Q;
use crate::frame::{ADDRESSES_LEN, Outgoing, TAG_LEN};
use crate::offload::VNET_HDR_LEN;
use crate::spec::{Df, Networks, Tos, TunnelSpec};

/// Frames that are wrapped at once, at most: as many as the kernel cuts apart (`UDP_MAX_SEGMENTS`, before Linux 6.9).
pub const RUN_MAX: usize = 64;
/// Pieces of a frame: as many as [`Outgoing`] has, and one more where a tag is left out.
const PIECES_MAX: usize = 4;

/// The pieces of packets, in order.
pub type Slices<'a> = ArrayVec<IoSlice<'a>, { RUN_MAX * (PIECES_MAX + 1) }>;
/// Room for headers that are not the same for every frame.
pub type Headers = ArrayVec<HeaderBytes, RUN_MAX>;
type HeaderBytes = ArrayVec<u8, LEN_MAX>;
type Pieces<'f> = ArrayVec<&'f [u8], PIECES_MAX>;

/// How frames become packets to one remote; the same for all workers.
#[derive(Debug)]
pub struct Wrapper {
    header: Header,
    /// Whether a VLAN says which network a frame is of, and its tag is left out.
    by_vlan: bool,
    /// In order of VLANs; of one network only, whatever the VLAN.
    networks: Vec<Network>,
    tos: Tos,
    df: Df,
}

/// How far a remote's packets are numbered. It outlives changes of settings: who looks at the numbers would take a fresh start for old packets.
#[derive(Debug)]
pub struct Numbering {
    next: Mutex<u32>,
    /// What timestamps count from.
    epoch: Instant,
}

/// The right to number packets until they have left: numbers must not leave out of order, and there is one row of them for all workers.
#[derive(Debug)]
pub struct Stamps<'a> {
    next: MutexGuard<'a, u32>,
    timestamp: u32,
}

impl Default for Numbering {
    fn default() -> Self {
        Numbering { next: Mutex::new(0), epoch: Instant::now() }
    }
}

impl Numbering {
    /// Waits for other workers, which have it for a batch.
    #[must_use]
    pub fn lock(&self) -> Stamps<'_> {
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        // In units of 100 µs.
        #[allow(clippy::cast_possible_truncation, reason = "it comes round")]
        let timestamp = (self.epoch.elapsed().as_micros() / 100) as u32;
        Stamps { next, timestamp }
    }
}

#[derive(Debug)]
struct Network {
    vid: u16,
    number: u32,
    /// Its header, where that is the same for every frame.
    header: HeaderBytes,
}

/// What packets that leave by one call have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class {
    /// Number of the flow.
    pub flow: u16,
    /// Nobody may fragment them.
    pub whole: bool,
    /// Their type of service or traffic class.
    pub tos: u8,
}

impl Wrapper {
    /// To a remote of a tunnel, or to its group.
    #[must_use]
    pub fn new(spec: &TunnelSpec, df: Df) -> Wrapper {
        let network = |vid, number| Network { vid, number, header: spec.header.write(number, 0, 0, &[]) };
        let (by_vlan, networks) = match &spec.networks {
            Networks::One(number) => (false, vec![network(0, *number)]),
            Networks::ByVlan(map) => {
                (true, map.iter().map(|&(vlan, number)| network(vlan.get(), number)).collect())
            }
        };
        Wrapper { header: spec.header, by_vlan, networks, tos: spec.tos, df }
    }

    /// Whether packets follow their frames in whether they may be fragmented.
    #[must_use]
    pub fn inherits_df(&self) -> bool {
        self.df == Df::Inherit
    }

    /// Whether packets are numbered: then [`Wrapper::wrap`] needs [`Stamps`].
    #[must_use]
    pub fn is_numbered(&self) -> bool {
        self.header.has_sequence()
    }

    /// The class of a frame; `None` if no network here is its VLAN's.
    #[inline]
    #[must_use]
    pub fn class(&self, frame: &Outgoing<'_>) -> Option<Class> {
        self.network(frame)?;
        let flow = Flow::of(frame);
        let whole = match self.df {
            Df::Inherit => flow.whole,
            Df::Set => true,
            Df::Unset => false,
        };
        let tos = match self.tos {
            Tos::Inherit => flow.tos,
            Tos::Fixed(tos) => tos & !ecn::MASK | flow.tos & ecn::MASK,
        };
        Some(Class { flow: flow.number, whole, tos })
    }

    /// How many of `frames`, the first of which has this class, can leave by one call of up to `bytes`: of one class and one length, but the
    /// last may be shorter.
    #[inline]
    #[must_use]
    pub fn run(&self, frames: &[Outgoing<'_>], class: Class, bytes: usize) -> usize {
        let Some(len) = frames.first().map(Outgoing::frame_len) else { return 0 };
        let most = (bytes / (len + self.header.len())).clamp(1, RUN_MAX);
        let mut run = 1;
        while let Some(next) = frames.get(run).filter(|_| run < most) {
            if next.frame_len() > len || self.class(next) != Some(class) {
                break;
            }
            run += 1;
            if next.frame_len() < len {
                break;
            }
        }
        run
    }

    /// Adds the packets of up to [`RUN_MAX`] frames that all have a class to `slices`; returns the length of the first.
    #[inline]
    pub fn wrap<'a>(
        &'a self,
        frames: &'a [Outgoing<'a>],
        stamps: Option<&mut Stamps<'_>>,
        headers: &'a mut Headers,
        slices: &mut Slices<'a>,
    ) -> usize {
        headers.clear();
        if !self.header.is_constant() {
            self.write(frames, stamps, headers);
        }
        let mut first = 0;
        for (index, frame) in frames.iter().take(RUN_MAX).enumerate() {
            let constant = self.network(frame).map_or(&[][..], |network| &network.header);
            slices.push(IoSlice::new(headers.get(index).map_or(constant, |header| header)));
            if self.by_vlan {
                slices.extend(self.pieces(frame).into_iter().map(IoSlice::new));
            } else {
                let [_, pieces @ ..] = frame.slices();
                slices.extend(pieces.into_iter().filter(|piece| !piece.is_empty()).map(IoSlice::new));
            }
            if index == 0 {
                first = self.header.len() + slices[1..].iter().map(|slice| slice.len()).sum::<usize>();
            }
        }
        first
    }

    /// Headers that depend on their frame, or on those before.
    #[cold]
    fn write(&self, frames: &[Outgoing<'_>], mut stamps: Option<&mut Stamps<'_>>, headers: &mut Headers) {
        for frame in frames.iter().take(RUN_MAX) {
            let number = self.network(frame).map_or(0, |network| network.number);
            let (mut sequence, mut timestamp) = (0, 0);
            if let Some(stamps) = &mut stamps {
                (sequence, timestamp) = (*stamps.next, stamps.timestamp);
                *stamps.next = sequence.wrapping_add(1);
            }
            headers.push(self.header.write(number, sequence, timestamp, &self.pieces(frame)));
        }
    }

    #[inline]
    fn network(&self, frame: &Outgoing<'_>) -> Option<&Network> {
        if !self.by_vlan {
            return self.networks.first();
        }
        let vid = tci(frame)? & 0xfff;
        let at = self.networks.binary_search_by_key(&vid, |network| network.vid).ok()?;
        self.networks.get(at)
    }

    /// The pieces of a frame as it is sent: without offload header, and without the tag where the network says the same.
    #[inline]
    fn pieces<'f>(&self, frame: &'f Outgoing<'_>) -> Pieces<'f> {
        let [_, pieces @ ..] = frame.slices();
        let mut kept = Pieces::new();
        let mut keep = |piece: &'f [u8]| {
            if !piece.is_empty() {
                kept.push(piece);
            }
        };
        let mut start = 0;
        for piece in pieces {
            if self.by_vlan && start < ADDRESSES_LEN + TAG_LEN {
                let (before, behind) = piece.split_at(ADDRESSES_LEN.saturating_sub(start).min(piece.len()));
                let tag = (ADDRESSES_LEN + TAG_LEN).saturating_sub(start + before.len());
                keep(before);
                keep(&behind[tag.min(behind.len())..]);
            } else {
                keep(piece);
            }
            start += piece.len();
        }
        kept
    }
}

/// Tag control information of a frame's 802.1Q tag.
fn tci(frame: &Outgoing<'_>) -> Option<u16> {
    let behind_addresses = |bytes: &[u8]| bytes.get(VNET_HDR_LEN + ADDRESSES_LEN..)?.first_chunk().copied();
    let [a, b, c, d] = match frame {
        Outgoing::Pieces { tag: Some(tag), .. } => *tag,
        Outgoing::Pieces { rest, .. } => *rest.first_chunk::<TAG_LEN>()?,
        Outgoing::Whole { bytes, .. } | Outgoing::Lent { bytes, .. } => behind_addresses(bytes)?,
        Outgoing::Segment { head, .. } => behind_addresses(head)?,
    };
    (u16::from_be_bytes([a, b]) == TPID_8021Q).then_some(u16::from_be_bytes([c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::VlanId;
    use crate::tunnel::encapsulation::NetworkId;
    use crate::tunnel::erspan::Sender;
    use proptest::prelude::*;

    fn spec(header: Header, networks: Networks) -> TunnelSpec {
        TunnelSpec { networks, ..TunnelSpec::new(header, 0, [10, 0, 0, 1].into()) }
    }

    fn vlan(vid: u16) -> VlanId {
        VlanId::new(vid).expect("in range")
    }

    /// The packets of frames that leave by one call.
    fn packets(wrapper: &Wrapper, frames: &[Outgoing<'_>]) -> Vec<Vec<u8>> {
        let (mut headers, mut slices) = (Headers::new(), Slices::new());
        let numbering = Numbering::default();
        let first = wrapper.wrap(frames, Some(&mut numbering.lock()), &mut headers, &mut slices);
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        bytes.chunks(first).map(<[u8]>::to_vec).collect()
    }

    /// A frame in each of the forms that ports send: whole, cut, and with its tag apart.
    fn forms<'a>(bytes: &'a [u8], tag: Option<[u8; 4]>, cut: usize) -> Vec<Outgoing<'a>> {
        let (addresses, rest) = bytes[VNET_HDR_LEN..].split_at(ADDRESSES_LEN);
        let header = [0; VNET_HDR_LEN];
        let pieces = Outgoing::Pieces { header, addresses, tag, rest, segments: 1 };
        if tag.is_some() {
            return vec![pieces];
        }
        let (head, payload) = bytes.split_at((VNET_HDR_LEN + 18 + cut).min(bytes.len()));
        vec![Outgoing::Whole { bytes, segments: 1 }, Outgoing::Segment { head, payload }, pieces]
    }

    proptest! {
        /// Whatever form a frame has, its packet has it whole, and says its network.
        #[test]
        fn what_goes_in_comes_out(
            payload in prop::collection::vec(any::<u8>(), 6..200),
            vid in 1..4095u16,
            cut in 0..200usize,
            header in prop::sample::select(vec![
                Header::Vxlan,
                Header::Geneve,
                Header::Gre { key: true, sequence: true, checksum: true },
                Header::Gre { key: false, sequence: false, checksum: false },
                Header::Erspan(Sender::II { index: 5 }),
            ]),
        ) {
            let [high, low] = vid.to_be_bytes();
            let tag = [0x81, 0, high, low];
            let addresses = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
            let untagged = [&[0; VNET_HDR_LEN][..], &addresses, &payload].concat();
            let tagged = [&[0; VNET_HDR_LEN][..], &addresses, &tag, &payload].concat();

            let wrapper = Wrapper::new(&spec(header, Networks::One(7)), Df::Inherit);
            for frame in forms(&tagged, None, cut).into_iter().chain(forms(&untagged, Some(tag), cut)) {
                let packet = &packets(&wrapper, &[frame])[0];
                let parsed = header.encapsulation().parse(packet);
                prop_assert_eq!(parsed, Some((header.network(7), &tagged[VNET_HDR_LEN..])));
            }
            // A network for the VLAN: the tag stays here.
            let map = Networks::ByVlan(vec![(vlan(vid), 9)]);
            let wrapper = Wrapper::new(&spec(Header::Vxlan, map), Df::Inherit);
            for frame in forms(&tagged, None, cut).into_iter().chain(forms(&untagged, Some(tag), cut)) {
                let packet = &packets(&wrapper, &[frame])[0];
                let parsed = Header::Vxlan.encapsulation().parse(packet);
                prop_assert_eq!(parsed, Some((NetworkId::Vni(9), &untagged[VNET_HDR_LEN..])));
            }
            let other = forms(&untagged, Some([0x81, 0, 0, 0]), cut)[0];
            prop_assert_eq!(wrapper.class(&other), None, "priority-tagged: in no VLAN");
        }
    }

    #[test]
    fn runs_end_where_packets_would_differ() {
        let frame = |len: usize, port: u8, tos: u8| {
            let ip = [0x45, tos, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, port, 0, 9];
            let mut bytes = [&[0; VNET_HDR_LEN][..], &[2; 12], &[8, 0], &ip].concat();
            bytes.resize(VNET_HDR_LEN + len, 0);
            bytes
        };
        let wrapper = Wrapper::new(&spec(Header::Vxlan, Networks::One(7)), Df::Inherit);
        let run = |frames: &[Vec<u8>], bytes| {
            let frames: Vec<_> = frames.iter().map(|bytes| Outgoing::Whole { bytes, segments: 1 }).collect();
            let class = wrapper.class(&frames[0]).expect("it has one");
            wrapper.run(&frames, class, bytes)
        };
        let long = frame(100, 1, 0);
        assert_eq!(
            run(&[long.clone(), long.clone(), frame(90, 1, 0), long.clone()], 65_507),
            3,
            "a shorter one is the last"
        );
        assert_eq!(run(&[long.clone(), frame(101, 1, 0)], 65_507), 1, "a longer one is another's first");
        assert_eq!(run(&[long.clone(), frame(100, 2, 0)], 65_507), 1, "another flow");
        assert_eq!(run(&[long.clone(), frame(100, 1, 2)], 65_507), 1, "another ECN");
        assert_eq!(run(&vec![long.clone(); 99], 65_507), RUN_MAX);
        assert_eq!(run(&vec![long; 99], 500), 4, "bytes");
    }
}

//! Properties of everything in `offload` together, on frames made by hand with etherparse's checksums as reference.

use etherparse::{Ipv4HeaderSlice, TcpHeaderSlice, UdpHeader};
use proptest::prelude::*;

use super::segment::{Checksum, Segmenter};
use super::*;
use crate::wire::ethernet::{EtherType, Tag};

/// All there is to a frame; [`Model::build`] makes it.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) tags: Vec<Tag>,
    pub(super) ipv4: bool,
    pub(super) tcp: bool,
    /// Options of IPv4, a multiple of 4 bytes.
    pub(super) ip_options: Vec<u8>,
    /// IPv6 extension headers: protocol number and contents (8n + 6 bytes).
    pub(super) extensions: Vec<(u8, Vec<u8>)>,
    pub(super) tcp_options: Vec<u8>,
    pub(super) tcp_flags: u8,
    pub(super) seq: u32,
    pub(super) id: u16,
    pub(super) payload: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Field {
    Complete,
    PseudoHeader,
}

const SRC: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 10, 0, 0, 1, 0, 0, 0, 1];
const DST: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 10, 0, 0, 2, 0, 0, 0, 2];
const ROUTING: u8 = 43;

impl Model {
    pub(super) fn l3(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    pub(super) fn l4(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|(_, contents)| 2 + contents.len()).sum();
        self.l3() + if self.ipv4 { 20 + self.ip_options.len() } else { 40 + extensions }
    }

    pub(super) fn header_len(&self) -> usize {
        self.l4() + if self.tcp { 20 + self.tcp_options.len() } else { 8 }
    }

    fn protocol(&self) -> u8 {
        if self.tcp { protocol::TCP } else { protocol::UDP }
    }

    fn csum_offset(&self) -> u16 {
        if self.tcp { 16 } else { 6 }
    }

    /// The destination that counts for the checksum: a routing header with segments left names another.
    fn final_dst(&self) -> [u8; 16] {
        let routing = self.extensions.iter().find(|(kind, _)| *kind == ROUTING);
        match routing {
            Some((_, contents)) if contents[1] != 0 => contents[6..22].try_into().expect("16 bytes"),
            _ => DST,
        }
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 0, 80];
        if self.tcp {
            bytes.extend(self.seq.to_be_bytes());
            bytes.extend([1, 2, 3, 4]);
            bytes.push(u8::try_from((20 + self.tcp_options.len()) / 4).expect("small") << 4);
            bytes.extend([self.tcp_flags, 0xff, 0xff, 0, 0, 0, 7]);
            bytes.extend(&self.tcp_options);
        } else {
            bytes.extend(u16::try_from(8 + self.payload.len()).expect("64 KiB").to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes
    }

    /// Computed by etherparse.
    fn checksum(&self, transport: &[u8]) -> u16 {
        let (v4_src, v4_dst) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        if self.tcp {
            let header = TcpHeaderSlice::from_slice(transport).expect("valid");
            if self.ipv4 {
                header.calc_checksum_ipv4_raw(v4_src, v4_dst, &self.payload).expect("fits")
            } else {
                header.calc_checksum_ipv6_raw(SRC, self.final_dst(), &self.payload).expect("fits")
            }
        } else {
            let (header, _) = UdpHeader::from_slice(transport).expect("valid");
            if self.ipv4 {
                header.calc_checksum_ipv4_raw(v4_src, v4_dst, &self.payload).expect("fits")
            } else {
                header.calc_checksum_ipv6_raw(SRC, self.final_dst(), &self.payload).expect("fits")
            }
        }
    }

    /// What a sender leaves in the field: the pseudo-header, summed up word by word.
    fn pseudo_header(&self, transport_len: usize) -> u16 {
        let mut words =
            if self.ipv4 { vec![10, 0, 0, 1, 10, 0, 0, 2] } else { [SRC, self.final_dst()].concat() };
        words.extend([0, self.protocol()]);
        words.extend(u16::try_from(transport_len + self.payload.len()).expect("64 KiB").to_be_bytes());
        let mut sum: u32 = words.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).expect("folded")
    }

    pub(super) fn build(&self, field: Field) -> Vec<u8> {
        let mut transport = self.transport();
        let value = match field {
            Field::Complete => self.checksum(&transport),
            Field::PseudoHeader => self.pseudo_header(transport.len()),
        };
        let at = usize::from(self.csum_offset());
        transport[at..at + 2].copy_from_slice(&value.to_be_bytes());

        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        self.tags.iter().for_each(|tag| frame.extend(tag.to_bytes()));
        if self.ipv4 {
            self.ipv4_header(&mut frame)
        } else {
            self.ipv6_header(&mut frame)
        }
        frame.extend(transport);
        frame.extend(&self.payload);
        frame
    }

    fn ipv4_header(&self, frame: &mut Vec<u8>) {
        frame.extend([8, 0]);
        let l3 = frame.len();
        let header_len = 20 + self.ip_options.len();
        let total = u16::try_from(self.header_len() - self.l3() + self.payload.len()).expect("64 KiB");
        frame.extend([0x40 | u8::try_from(header_len / 4).expect("small"), 0x28]);
        frame.extend(total.to_be_bytes());
        frame.extend(self.id.to_be_bytes());
        frame.extend([0x40, 0, 64, self.protocol(), 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(&self.ip_options);
        let checksum =
            Ipv4HeaderSlice::from_slice(&frame[l3..]).expect("valid").to_header().calc_header_checksum();
        frame[l3 + 10..l3 + 12].copy_from_slice(&checksum.to_be_bytes());
    }

    fn ipv6_header(&self, frame: &mut Vec<u8>) {
        frame.extend([0x86, 0xdd, 0x60, 0x12, 0x34, 0x56]);
        let payload_len = self.header_len() - self.l3() - 40 + self.payload.len();
        frame.extend(u16::try_from(payload_len).expect("64 KiB").to_be_bytes());
        let mut kinds: Vec<u8> = self.extensions.iter().map(|(kind, _)| *kind).collect();
        kinds.push(self.protocol());
        frame.extend([kinds[0], 64]);
        frame.extend(SRC);
        frame.extend(DST);
        for ((_, contents), next) in self.extensions.iter().zip(&kinds[1..]) {
            frame.extend([*next, u8::try_from((contents.len() + 2) / 8 - 1).expect("small")]);
            frame.extend(contents);
        }
    }

    pub(super) fn offload(&self, gso_size: u16) -> Offload {
        Offload {
            needs_csum: true,
            csum_valid: false,
            csum_start: low16(self.l4()),
            csum_offset: self.csum_offset(),
            gso: match (self.tcp, self.ipv4) {
                _ if gso_size == 0 => Gso::None,
                (true, true) => Gso::Tcp4,
                (true, false) => Gso::Tcp6,
                (false, _) => Gso::Udp,
            },
            tunnel: false,
            ecn: gso_size != 0 && self.tcp && self.tcp_flags & tcp::CWR != 0,
            gso_size,
            hdr_len: if gso_size == 0 { 0 } else { low16(self.header_len()) },
        }
    }

    /// The segments a port without offloads would have been given.
    pub(super) fn segments(&self, gso_size: u16) -> Vec<Model> {
        let count = self.payload.len().div_ceil(usize::from(gso_size));
        let pieces = self.payload.chunks(usize::from(gso_size)).enumerate();
        pieces
            .map(|(index, piece)| {
                let mut segment = self.clone();
                segment.payload = piece.to_vec();
                segment.id = self.id.wrapping_add(u16::try_from(index).expect("few"));
                segment.seq = self.seq.wrapping_add(u32::try_from(index).expect("few") * u32::from(gso_size));
                if index != 0 {
                    segment.tcp_flags &= !tcp::CWR;
                }
                if index + 1 != count {
                    segment.tcp_flags &= !(tcp::FIN | tcp::PSH);
                }
                segment
            })
            .collect()
    }
}

fn tags() -> impl Strategy<Value = Vec<Tag>> {
    let tag = (any::<bool>(), any::<u16>())
        .prop_map(|(outer, tci)| Tag { tpid: if outer { EtherType::QINQ } else { EtherType::VLAN }, tci });
    prop::collection::vec(tag, 0..3)
}

/// Hop-by-hop first, if at all; then destination options; then a routing header that may have a segment left.
fn extensions() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    (prop::option::of(0_usize..3), prop::option::of(0_usize..3), prop::option::of(0_u8..2)).prop_map(
        |(hop_by_hop, options, routing)| {
            // PadN over the whole of it.
            let padding = |len8: usize| {
                let mut contents = vec![0; 8 * len8 + 6];
                contents[..2].copy_from_slice(&[1, u8::try_from(8 * len8 + 4).expect("small")]);
                contents
            };
            let mut list = vec![];
            list.extend(hop_by_hop.map(|len| (0, padding(len))));
            list.extend(options.map(|len| (60, padding(len))));
            list.extend(routing.map(|left| {
                let mut contents = vec![0, left, 0, 0, 0, 0];
                contents.extend([0xfd; 16]);
                (ROUTING, contents)
            }));
            list
        },
    )
}

fn models() -> impl Strategy<Value = Model> {
    let words = |most: usize| (0..=most).prop_map(|words| vec![1; 4 * words]);
    let payload_len = prop_oneof![4 => 1..3000_usize, 1 => 1..65_000_usize];
    let payload = (payload_len, any::<u32>()).prop_map(|(len, seed)| {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_be_bytes()[0]
        };
        (0..len).map(|_| next()).collect()
    });
    let fields = (any::<u8>(), any::<u32>(), any::<u16>());
    (tags(), any::<bool>(), any::<bool>(), words(10), extensions(), words(10), fields, payload).prop_map(
        |(tags, ipv4, tcp, ip_options, extensions, tcp_options, (tcp_flags, seq, id), payload)| Model {
            tags,
            ipv4,
            tcp,
            ip_options: if ipv4 { ip_options } else { vec![] },
            extensions: if ipv4 { vec![] } else { extensions },
            tcp_options,
            tcp_flags,
            seq,
            id,
            payload,
        },
    )
}

/// A frame and a segment size that cuts it into at least two.
pub(super) fn gso_models() -> impl Strategy<Value = (Model, u16)> {
    models()
        .prop_filter("two segments", |model| model.payload.len() >= 2)
        .prop_flat_map(|model| {
            let len = model.payload.len();
            let least = if model.tcp {
                (len / MAX_TCP_SEGMENTS + 1)
                    .max(MIN_TCP_SEGMENT_BYTES.saturating_sub(model.tcp_options.len()))
            } else {
                len / MAX_UDP_SEGMENTS + 1
            };
            let sizes = least..(len.min(9000)).max(least + 1);
            (Just(model), sizes)
        })
        .prop_map(|(model, size)| (model, u16::try_from(size).expect("small")))
        .prop_filter("two segments", |(model, size)| model.payload.len() > usize::from(*size))
}

/// A tunnel around a frame.
#[derive(Clone, Copy, Debug)]
enum Tunnel {
    Vxlan { checksum: bool },
    GreTap { key: bool },
    Ip,
}

#[derive(Clone, Debug)]
struct Wrapping {
    tunnel: Tunnel,
    tags: Vec<Tag>,
    ipv4: bool,
    id: u16,
}

impl Wrapping {
    /// `inner` is a frame whose IP header is at `l3`; number `index` of several.
    fn wrap(&self, inner: &[u8], l3: usize, index: usize) -> Vec<u8> {
        let (number, mut packet) = match self.tunnel {
            Tunnel::Vxlan { .. } => (17, vec![0xc0, 1, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 5, 0]),
            Tunnel::GreTap { key: true } => (47, vec![0x20, 0, 0x65, 0x58, 0, 0, 0, 9]),
            Tunnel::GreTap { key: false } => (47, vec![0, 0, 0x65, 0x58]),
            Tunnel::Ip if inner[l3] >> 4 == 4 => (4, vec![]),
            Tunnel::Ip => (41, vec![]),
        };
        packet.extend(if matches!(self.tunnel, Tunnel::Ip) { &inner[l3..] } else { inner });
        let len = u16::try_from(packet.len()).expect("64 KiB");
        if let Tunnel::Vxlan { checksum } = self.tunnel {
            packet[4..6].copy_from_slice(&len.to_be_bytes());
            let (header, payload) = UdpHeader::from_slice(&packet).expect("valid");
            let sum = match (checksum, self.ipv4) {
                (false, _) => 0,
                (true, true) => {
                    header.calc_checksum_ipv4_raw([10, 9, 0, 1], [10, 9, 0, 2], payload).expect("fits")
                }
                (true, false) => header.calc_checksum_ipv6_raw(SRC, DST, payload).expect("fits"),
            };
            packet[6..8].copy_from_slice(&sum.to_be_bytes());
        }
        let mut frame = vec![2, 0, 0, 0, 9, 2, 2, 0, 0, 0, 9, 1];
        self.tags.iter().for_each(|tag| frame.extend(tag.to_bytes()));
        if self.ipv4 {
            let mut header =
                etherparse::Ipv4Header::new(len, 64, number.into(), [10, 9, 0, 1], [10, 9, 0, 2])
                    .expect("fits");
            header.identification = self.id.wrapping_add(u16::try_from(index).expect("few"));
            header.header_checksum = header.calc_header_checksum();
            frame.extend([8, 0]);
            frame.extend(header.to_bytes());
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(len.to_be_bytes());
            frame.extend([number, 64]);
            frame.extend(SRC);
            frame.extend(DST);
        }
        frame.extend(packet);
        frame
    }
}

fn wrappings() -> impl Strategy<Value = Wrapping> {
    let tunnel = prop_oneof![
        any::<bool>().prop_map(|checksum| Tunnel::Vxlan { checksum }),
        any::<bool>().prop_map(|key| Tunnel::GreTap { key }),
        Just(Tunnel::Ip),
    ];
    (tunnel, tags(), any::<bool>(), any::<u16>()).prop_map(|(tunnel, tags, ipv4, id)| Wrapping {
        tunnel,
        tags,
        ipv4,
        id,
    })
}

pub(super) fn cut(segmenter: &mut Segmenter<'_>) -> Vec<Vec<u8>> {
    let mut buffer = vec![0xaa; segmenter.segment_size_max()];
    let mut segments = vec![];
    while let Some(len) = segmenter.next_into(&mut buffer) {
        segments.push(buffer[..len].to_vec());
        assert!(segments.len() <= MAX_TCP_SEGMENTS, "does not end");
    }
    segments
}

/// Linux's `virtio_net_hdr_to_skb` and what `tun_get_user` and `packet_snd` add to it, for TAP devices: whether they
/// would take the frame.
pub(super) fn kernel_takes(header: &[u8; VNET_HDR_LEN], frame: &[u8]) -> bool {
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (needs_csum, gso_type) = (header[0] & 1 != 0, header[1]);
    let (hdr_len, gso_size, start, offset) = (field(2), field(4), field(6), field(8));
    let hdr_len = if needs_csum { hdr_len.max(start + offset + 2) } else { hdr_len };
    if hdr_len > frame.len() || (hdr_len != 0 && hdr_len < 14) {
        return false;
    }
    let (transport_len, network_len, csum_offset) = match gso_type & 0x7f {
        0 => (0, 20, None),
        1 => (20, 20, Some(16)),
        4 => (20, 40, Some(16)),
        5 if gso_type == 5 => (8, 20, Some(6)),
        _ => return false,
    };
    if gso_type != 0 && (!needs_csum || gso_size == 0 || gso_size == 0xffff || csum_offset != Some(offset)) {
        return false;
    }
    if needs_csum && (start + transport_len.max(offset + 2) > frame.len() || start < network_len) {
        return false;
    }
    gso_type != 5 || frame.len() - start - 8 <= gso_size * 128
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// The same inside a tunnel: the outer headers are those of separate packets, too.
    #[test]
    fn segments_in_a_tunnel_are_what_would_have_been_sent((model, gso_size) in gso_models(), wrapping in wrappings()) {
        prop_assume!(model.extensions.is_empty() && model.payload.len() < 64_000);
        let inner = model.build(Field::PseudoHeader);
        let mut frame = wrapping.wrap(&inner, model.l3(), 0);
        let mut offload = model.offload(gso_size);
        offload.csum_start = low16(frame.len() - inner.len() + model.l4());
        offload.hdr_len = 0;
        let len = frame.len();
        offload.admit(&mut frame, len).expect("admitted");
        prop_assert!(offload.tunnel);
        let expected: Vec<_> = (model.segments(gso_size).iter().enumerate())
            .map(|(index, segment)| wrapping.wrap(&segment.build(Field::Complete), model.l3(), index))
            .collect();
        prop_assert_eq!(offload.segments(len) as usize, expected.len());
        let all = Capabilities { csum: true, tso4: true, tso6: true, uso: true };
        prop_assert_eq!(all.takes(&offload), Takes::Segment, "no header can say it");

        let mut segmenter = Segmenter::new(&frame, &offload, Checksum::Complete).expect("valid");
        prop_assert_eq!(cut(&mut segmenter), expected.clone());

        let mut segmenter = Segmenter::new(&frame, &offload, all.segment_checksum()).expect("valid");
        let left = segmenter.segment_offload();
        let mut partial = cut(&mut segmenter);
        for segment in &mut partial {
            checksum::finish(segment, &left).expect("finished");
        }
        prop_assert_eq!(partial, expected);
    }

    /// Segments are byte for byte the frames that a sender without segmentation would have sent.
    #[test]
    fn segments_are_what_would_have_been_sent((model, gso_size) in gso_models()) {
        let frame = model.build(Field::PseudoHeader);
        let offload = model.offload(gso_size);
        let expected: Vec<_> = model.segments(gso_size).iter().map(|m| m.build(Field::Complete)).collect();
        prop_assert_eq!(segment_count(&frame, &offload) as usize, expected.len());
        prop_assert_eq!(offload.segments(frame.len()) as usize, expected.len());

        let mut segmenter = Segmenter::new(&frame, &offload, Checksum::Complete).expect("valid");
        prop_assert_eq!(segmenter.segment_size_max(), expected[0].len());
        prop_assert_eq!(segmenter.next_into(&mut vec![0; expected[0].len() - 1]), None);
        prop_assert_eq!(&cut(&mut segmenter), &expected);

        // Left partial and finished later: the same.
        let mut segmenter = Segmenter::new(&frame, &offload, Checksum::Partial).expect("valid");
        let needs = segmenter.segment_offload();
        let mut finished = cut(&mut segmenter);
        for (segment, model) in finished.iter_mut().zip(model.segments(gso_size)) {
            prop_assert_eq!(needs, model.offload(0));
            checksum::finish(segment, &needs).expect("in range");
        }
        prop_assert_eq!(&finished, &expected);
    }

    /// The same from a frame in two pieces, the first with another tag, as a port sends it.
    #[test]
    fn a_tag_may_be_put_before((model, gso_size) in gso_models(), tci: u16) {
        let frame = model.build(Field::PseudoHeader);
        let tag = Tag { tpid: EtherType::VLAN, tci };
        let mut tagged = model.clone();
        tagged.tags.insert(0, tag);
        let offload = model.offload(gso_size).shifted(4);
        prop_assert_eq!(offload, tagged.offload(gso_size));
        prop_assert_eq!(offload.shifted(-4), model.offload(gso_size));

        let head = [&frame[..12], &tag.to_bytes()].concat();
        let mut segmenter =
            Segmenter::with_head(&head, &frame[12..], &offload, Checksum::Complete).expect("valid");
        let expected: Vec<_> = tagged.segments(gso_size).iter().map(|m| m.build(Field::Complete)).collect();
        prop_assert_eq!(cut(&mut segmenter), expected);
        prop_assert_eq!(checksum::finish(&mut tagged.build(Field::PseudoHeader), &offload), Err(BadOffload::Unsegmented));
    }

    /// A partial checksum becomes the one etherparse computes; a complete frame stays as it is.
    #[test]
    fn partial_checksums_are_finished(model in models()) {
        let expected = model.build(Field::Complete);
        let mut frame = model.build(Field::PseudoHeader);
        let after = checksum::finish(&mut frame, &model.offload(0)).expect("in range");
        prop_assert_eq!(&frame, &expected);
        prop_assert!(after.csum_valid && !after.needs_csum);
        prop_assert_eq!(checksum::finish(&mut frame, &after), Ok(after));
        prop_assert_eq!(&frame, &expected);
        prop_assert_eq!(after.segments(frame.len()), 1);
    }

    /// To a port and back; the kernel would take it.
    #[test]
    fn virtio_headers_survive((model, gso_size) in gso_models(), gso: bool) {
        let frame = model.build(Field::PseudoHeader);
        let mut offload = model.offload(if gso { gso_size } else { 0 });
        let mut header = [0xff; VNET_HDR_LEN];
        offload.to_virtio(&mut header);
        prop_assert_eq!(Offload::from_virtio(&header, frame.len()), Ok(offload));
        prop_assert!(kernel_takes(&header, &frame));
        let (before, mut head) = (offload, frame.clone());
        prop_assert_eq!(offload.admit(&mut head, frame.len()), Ok(()));
        prop_assert_eq!(offload, before);
        prop_assert_eq!(head, frame);
    }

    /// What lazy senders leave out is filled in: afterwards it is as if they had not.
    #[test]
    fn omissions_are_made_good((model, gso_size) in gso_models(), no_csum: bool, no_len: bool, no_ip_csum: bool) {
        let whole = model.build(Field::PseudoHeader);
        let expected = model.offload(gso_size);
        let mut frame = whole.clone();
        let mut header = [0; VNET_HDR_LEN];
        expected.to_virtio(&mut header);
        header[2..4].fill(0);
        let l3 = model.l3();
        if no_csum && model.extensions.is_empty() {
            header[0] = 0;
            header[6..10].fill(0xee);
            let field = model.l4() + usize::from(model.csum_offset());
            frame[field..field + 2].fill(0x55);
        }
        if no_len {
            let field = if model.ipv4 { l3 + 2 } else { l3 + 4 };
            frame[field..field + 2].fill(0);
        }
        if model.ipv4 && (no_len || no_ip_csum) {
            frame[l3 + 10..l3 + 12].fill(0);
        }
        let mut offload = Offload::from_virtio(&header, frame.len()).expect("plausible");
        // Only the headers are at hand.
        let (head, _payload) = frame.split_at_mut(model.header_len());
        prop_assert_eq!(offload.admit(head, whole.len()), Ok(()));
        prop_assert_eq!(offload, expected);
        prop_assert_eq!(frame, whole);
    }

    /// A payload of one segment is not to be segmented, only checksummed.
    #[test]
    fn one_segment_is_none(model in models()) {
        let size = u16::try_from(model.payload.len()).expect("64 KiB").min(65_534);
        let mut frame = model.build(Field::PseudoHeader);
        let mut offload = model.offload(size);
        let len = frame.len();
        prop_assert_eq!(offload.admit(&mut frame, len), Ok(()));
        prop_assert_eq!(offload, model.offload(0));
    }

    /// Whatever the header and the frame say: no panic, and what is let in is either sendable or finished.
    #[test]
    fn hostile_input_is_refused_or_harmless(
        (model, gso_size) in gso_models(),
        flags in 0_u8..4,
        gso_type in prop_oneof![Just(0_u8), Just(1), Just(4), Just(5), Just(0x81), any::<u8>()],
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        fields in prop::array::uniform10(prop::option::weighted(0.1, any::<u8>())),
        keep in any::<prop::sample::Index>(),
        truncate in prop::bool::weighted(0.2),
    ) {
        let mut frame = model.build(Field::PseudoHeader);
        let mut header = [0; VNET_HDR_LEN];
        model.offload(gso_size).to_virtio(&mut header);
        header[0] = flags;
        header[1] = gso_type;
        for (byte, noise) in header[2..].iter_mut().zip(fields) {
            *byte = noise.unwrap_or(*byte);
        }
        let headers_len = model.header_len();
        noise.iter().for_each(|(index, value)| frame[index.index(headers_len)] = *value);
        if truncate {
            frame.truncate(keep.index(frame.len()));
        }
        hostile(&header, &mut frame);
    }

    /// The same of pure noise.
    #[test]
    fn noise_is_refused_or_harmless(
        header in prop::array::uniform10(any::<u8>()),
        mut frame in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        hostile(&header, &mut frame);
    }
}

/// Takes a frame through everything.
fn hostile(header: &[u8; VNET_HDR_LEN], frame: &mut [u8]) {
    let len = frame.len();
    let Ok(mut offload) = Offload::from_virtio(header, len) else { return };
    if offload.admit(frame, len).is_err() {
        return;
    }
    let mut out = [0; VNET_HDR_LEN];
    offload.to_virtio(&mut out);
    if len >= 14 {
        assert!(kernel_takes(&out, frame), "{offload:?} of {len} bytes");
    }
    if offload.gso == Gso::None {
        let after = checksum::finish(frame, &offload).expect("admitted");
        assert!(!after.needs_csum);
        return;
    }
    let layout = check_headers(frame, &offload).expect("admitted");
    let mut segmenter = Segmenter::new(frame, &offload, Checksum::Complete).expect("admitted");
    let segments = cut(&mut segmenter);
    assert_eq!(segments.len(), segment_count(frame, &offload) as usize);
    assert!(segments.len() > 1);
    let payload: Vec<u8> = segments.iter().flat_map(|segment| segment[layout.payload..].to_vec()).collect();
    assert!(payload == frame[layout.payload..], "payload lost");
}

pub(super) fn model(ipv4: bool, tcp: bool, payload: usize) -> Model {
    Model {
        tags: vec![],
        ipv4,
        tcp,
        ip_options: vec![],
        extensions: vec![],
        tcp_options: vec![1; 12],
        tcp_flags: 0x18,
        seq: u32::MAX - 100,
        id: u16::MAX,
        payload: vec![7; payload],
    }
}

/// A tunnel of which the inner packet has room in 64 KiB and the outer one has not; and one whose checksum nobody here can know.
#[test]
fn tunnels_that_cannot_be_cut_are_refused() {
    let admit = |frame: &mut [u8], inner: &Model, inner_len: usize| {
        let len = frame.len();
        let csum_start = low16(len - inner_len + inner.l4());
        let mut offload = Offload { csum_start, hdr_len: 0, ..inner.offload(40_000) };
        offload.admit(frame, len).err()
    };
    let most = 65_535 - 52;
    for (payload, expected) in [(most - 20, None), (most, Some(BadOffload::Length))] {
        let inner = model(true, true, payload);
        let bytes = inner.build(Field::PseudoHeader);
        // Without the outer length filled in, which is what a sender of too much does.
        let outer = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 4, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2];
        let mut frame = [&bytes[..14], &outer, &bytes[14..]].concat();
        let inner_len = bytes.len();
        assert_eq!(admit(&mut frame, &inner, inner_len), expected);
    }

    let inner = model(true, true, 50_000);
    let bytes = inner.build(Field::PseudoHeader);
    let udp_len = low16(16 + bytes.len()).to_be_bytes();
    for (checksum, expected) in [(0, None), (1, Some(BadOffload::ChecksumField))] {
        let mut frame = bytes[..12].to_vec();
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(low16(24 + 16 + bytes.len()).to_be_bytes());
        frame.extend([ROUTING, 64]);
        frame.extend([SRC, DST].concat());
        frame.extend([17, 2, 0, 1, 0, 0, 0, 0]);
        frame.extend(SRC);
        frame.extend([0xc0, 1, 0x12, 0xb5, udp_len[0], udp_len[1], 0, checksum, 8, 0, 0, 0, 0, 0, 5, 0]);
        frame.extend(&bytes);
        assert_eq!(admit(&mut frame, &inner, bytes.len()), expected);
    }
}

#[test]
fn bad_descriptions_have_reasons() {
    let good = model(true, true, 5000);
    let frame = good.build(Field::PseudoHeader);
    let offload = good.offload(1448);
    let check = |change: fn(&mut Offload), frame: &[u8]| {
        let mut changed = offload;
        change(&mut changed);
        check_headers(frame, &changed).err()
    };
    let with = |at: usize, value: u8| {
        let mut changed = frame.clone();
        changed[at] = value;
        check_headers(&changed, &offload).err()
    };
    assert_eq!(check(|_| (), &frame), None);
    assert_eq!(check(|o| o.gso = Gso::Tcp6, &frame), Some(BadOffload::Protocol));
    assert_eq!(check(|o| o.gso = Gso::Udp, &frame), Some(BadOffload::Protocol));
    assert_eq!(check(|o| o.gso_size = 2, &frame), Some(BadOffload::GsoSize(2)));
    assert_eq!(check(|o| o.csum_start += 4, &frame), Some(BadOffload::ChecksumField));
    assert_eq!(check(|o| o.csum_offset = 6, &frame), Some(BadOffload::ChecksumField));
    assert_eq!(check(|_| (), &frame[..4000]), Some(BadOffload::Length));
    assert_eq!(check(|_| (), &frame[..50]), Some(BadOffload::Headers));
    assert_eq!(with(20, 0x20), Some(BadOffload::Fragment), "more fragments");
    assert_eq!(with(23, 17), Some(BadOffload::Protocol));
    assert_eq!(with(46, 0x40), Some(BadOffload::Headers), "TCP data offset 4");
    assert_eq!(with(14, 0x65), Some(BadOffload::Headers), "IP version 6 after an IPv4 EtherType");

    let mut fragment = model(false, true, 5000);
    fragment.extensions = vec![(44, vec![0, 8, 0, 0, 0, 1])];
    let offload6 = fragment.offload(1448);
    assert_eq!(check_headers(&fragment.build(Field::PseudoHeader), &offload6), Err(BadOffload::Fragment));

    let mut header = [0; VNET_HDR_LEN];
    offload.to_virtio(&mut header);
    let with = |at: usize, value: [u8; 2]| {
        let mut changed = header;
        changed[at..at + 2].copy_from_slice(&value);
        Offload::from_virtio(&changed, frame.len()).err()
    };
    assert_eq!(with(0, [1, 3]), Some(BadOffload::UnknownGso(3)), "UDP fragmentation");
    assert_eq!(with(0, [1, 0x85]), Some(BadOffload::UnknownGso(0x85)), "ECN of UDP");
    assert_eq!(with(0, [0, 0x80]), Some(BadOffload::UnknownGso(0x80)), "ECN of nothing");
    assert_eq!(with(4, [0, 0]), Some(BadOffload::GsoSize(0)));
    assert_eq!(with(4, [0xff, 0xff]), Some(BadOffload::GsoSize(0xffff)));
    assert_eq!(with(6, [13, 0]), Some(BadOffload::ChecksumRange));
    assert_eq!(with(8, [0xff, 0xff]), Some(BadOffload::ChecksumRange));
    assert_eq!(with(8, [6, 0]), Some(BadOffload::ChecksumField));
    assert_eq!(Offload::from_virtio(&[0; VNET_HDR_LEN], 0), Ok(Offload::default()));
}

/// One frame of 64 KiB is not to become tens of thousands of packets at each port it leaves by.
#[test]
fn tiny_segments_are_refused() {
    for ipv4 in [true, false] {
        // TCP options count, as in Linux: with timestamps, 36 bytes of payload are a segment size of 48.
        for (options_len, least) in [(0, 48), (12, 36), (40, 8)] {
            let model = Model { tcp_options: vec![1; options_len], ..model(ipv4, true, 5000) };
            let frame = model.build(Field::PseudoHeader);
            let check = |size: u16| check_headers(&frame, &model.offload(size)).err();
            for size in 1..least {
                assert_eq!(check(size), Some(BadOffload::GsoSize(size)), "{options_len} bytes of options");
            }
            assert_eq!(check(least), None);
            // At the port that brings it, too; and a frame that is one segment is cut by nobody.
            let admit = |model: &Model, size: u16| {
                let mut frame = model.build(Field::PseudoHeader);
                let len = frame.len();
                let mut offload = model.offload(size);
                offload.admit(&mut frame, len).map(|()| offload.gso)
            };
            assert_eq!(admit(&model, 1), Err(BadOffload::GsoSize(1)));
            let short = Model { payload: vec![7], ..model.clone() };
            assert_eq!(admit(&short, 1), Ok(Gso::None));
        }
        // 64 KiB in the smallest segments that connections have.
        let long = model(ipv4, true, 65_000);
        assert_eq!(check_headers(&long.build(Field::PseudoHeader), &long.offload(36)).err(), None);
        // UDP's datagrams are as small as a program wants, and few.
        let udp = |payload| model(ipv4, false, payload);
        let check = |model: &Model| check_headers(&model.build(Field::PseudoHeader), &model.offload(1)).err();
        assert_eq!(check(&udp(MAX_UDP_SEGMENTS)), None);
        assert_eq!(check(&udp(MAX_UDP_SEGMENTS + 1)), Some(BadOffload::Segments));
    }
}

#[test]
fn udp_never_says_no_checksum() {
    // The last word is chosen so that the sum is 0xffff and its complement 0.
    let mut model = model(true, false, 2);
    let sum = !model.checksum(&model.transport());
    let word = u16::from_be_bytes([7, 7]);
    model.payload = (0_u16..=0xffff)
        .map(u16::to_be_bytes)
        .find(|bytes| {
            let total = u32::from(sum) + u32::from(!word) + u32::from(u16::from_be_bytes(*bytes));
            (total & 0xffff) + (total >> 16) == 0xffff
        })
        .expect("there is one")
        .to_vec();
    let mut frame = model.build(Field::PseudoHeader);
    checksum::finish(&mut frame, &model.offload(0)).expect("in range");
    assert_eq!(frame[40..42], [0xff, 0xff]);
    assert_eq!(frame, model.build(Field::Complete));
}

#[test]
fn sctp_gets_its_crc() {
    let mut frame = model(true, false, 100).build(Field::PseudoHeader);
    frame[23] = protocol::SCTP;
    let offload = Offload { needs_csum: true, csum_start: 34, csum_offset: 8, ..Offload::default() };
    let everything = Capabilities { csum: true, tso4: true, tso6: true, uso: true };
    assert_eq!(everything.takes(&offload), Takes::FinishChecksum);
    let mut packet = frame[34..].to_vec();
    packet[8..12].fill(0);
    checksum::finish(&mut frame, &offload).expect("in range");
    // Bit by bit (RFC 9260, appendix A).
    let mut crc = u32::MAX;
    for byte in packet {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    assert_eq!(frame[42..46], (!crc).to_le_bytes());
}

#[test]
fn ports_take_what_they_can() {
    let tcp4 = model(true, true, 5000).offload(1448);
    let tcp6 = model(false, true, 5000).offload(1428);
    let udp = model(false, false, 5000).offload(1000);
    let partial = model(true, true, 100).offload(0);
    let plain = Offload::default();
    let takes = |csum, tso4, tso6, uso| {
        let port = Capabilities { csum, tso4, tso6, uso };
        [tcp4, tcp6, udp, partial, plain].map(|offload| port.takes(&offload))
    };
    use Takes::{AsIs, FinishChecksum, Segment};
    assert_eq!(takes(false, false, false, false), [Segment, Segment, Segment, FinishChecksum, AsIs]);
    assert_eq!(takes(true, false, false, false), [Segment, Segment, Segment, AsIs, AsIs]);
    assert_eq!(takes(true, true, false, false), [AsIs, Segment, Segment, AsIs, AsIs]);
    assert_eq!(takes(true, false, true, true), [Segment, AsIs, AsIs, AsIs, AsIs]);
    assert_eq!(takes(false, true, true, true), [Segment, Segment, Segment, FinishChecksum, AsIs]);
    assert_eq!(Capabilities { csum: true, ..Default::default() }.segment_checksum(), Checksum::Partial);
}
